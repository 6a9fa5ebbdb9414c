// Package layers is a store of named layers and containers, on whichever driver
// the machine has.
//
// # Terms
//
// A layer is a directory tree that stands on another layer, its parent, or on
// nothing, and never changes. A container stands on a layer, or on nothing, and is
// changed: mounted, compared with its layer, committed as a new layer. What a
// driver keeps for either is a tree (package driver).
//
// A layer is called by a name, or by its id or the beginning of it. Layers of
// images below the topmost have no name; they go with the last thing that stands on
// them. The id of a layer of an image is the chain id of OCI's image
// specification, so that images share the layers that they have in common.
//
// # On disk
//
//	ROOT/index.db    the index, a bbolt file: what there is, and the driver
//	ROOT/lock        held while the index is open (flock; shared for reading)
//	ROOT/trees.lock  a byte for each tree is locked by who works on it (trees.go)
//	ROOT/DRIVER      the driver's files
//	ROOT/mnt/TREE    where a container is mounted that nobody gave a directory
//	ROOT/run         sockets
//
// # What a crash leaves
//
// A command first records what it is about to make or remove, then works, then
// records that it is done; and while it works it holds the lock of the tree. Opening
// the store removes every tree that is being made or removed and whose lock nobody
// holds: its command has died. Such trees have a list of their own, so that opening
// costs the same with thousands of containers. So nothing half-made outlives the next command, and
// what the index shows as there is there. A layer's files are on disk before the
// index says so.
//
// # Lock order
//
// The lock of a tree before the index; of two trees, that of the one which stands
// on the other last. The index is open for the time of one transaction only, in
// which nothing is waited for.
package layers
