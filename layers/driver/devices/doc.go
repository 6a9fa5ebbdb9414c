// Package devices keeps every tree in a file system of its own, in a thin device: the
// drivers devicemapper, on the kernel's dm-thin, and thin, on layerfs's block store.
// It does what Docker's devicemapper driver did, with the same options, the same names
// of things and the same layout, so that stores can move between the two.
//
// # Terms
//
// The base device is an empty file system, made once; trees that stand on nothing are
// snapshots of it, others of their parents. A Pool keeps thin devices. A device is
// attached when it can be seen, as a block device or a file; its file system can be
// mounted then.
//
// # On disk
//
//	HOME/base.json    the base device, once it is complete
//	HOME/lock         held while devices are attached and detached (flock)
//	HOME/users        locks of commands that work on trees (mounting.go)
//	HOME/kept/ID      the tree ID is mounted until it is unmounted
//	HOME/mnt/ID       where the file system of the tree ID is mounted
//	HOME/…            what the pool keeps
//
// In the file system the tree is /rootfs, as Docker had it.
//
// # What a crash leaves
//
// The store records that a tree is being made before its device is, and has it
// removed after a crash. The base device is made again unless base.json says that it is
// complete. Mounts of programs that died are found in the kernel's table; an attached
// device that nothing is mounted of is detached by the next command.
package devices
