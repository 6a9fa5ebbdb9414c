// Package stub is what the union and the block store have in common about
// files that were copied up by blocks.
//
// # Terms
//
// A stub is the file in a branch that stands for such a file: it has its names,
// owner, mode, times and attributes. Its content is a text for people
// (Text). Where the content of the file is, the attribute layerfs.stub says, in
// the namespace trusted. or user.; only that counts. The content is a thin
// device in a pool (blocks that were written) over its external origin, the
// lower file (all others). The device's record has the size of the file, how far
// the origin still shows, and which ranges are zeros.
//
// # On disk
//
//	UPPER/.wh..wh.layerfs/id     the Identity of the upper
//	UPPER/.wh..wh.layerfs/pool   its private pool
//	layerfs.stub                 a Record, on the stub
//
// # Who may use a device
//
// The stub and the record of the device name each other: the stub the device
// and a random key, the device the same key, the random id of the upper and
// the stub's inode. A stub whose key is another reaches nothing. In a writable
// branch, a stub whose inode or upper is another is a copy that somebody has made
// by hand: it gets a snapshot of the device. So two stubs never share one.
//
// # Order
//
// The device is durable before the stub exists; the stub is complete in the
// work directory before one rename makes it the file. A device whose file is
// being made or unlinked says so; after a crash the next mount of that upper
// looks whether a stub is there, and if not, removes the device. No other device
// is ever removed but by the unlinking of its file.
package stub
