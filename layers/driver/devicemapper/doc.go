// Package devicemapper keeps thin devices in the kernel's dm-thin, for package devices.
//
// # The pool
//
// One of four: two sparse files on loop devices (Docker's loop-lvm), two block devices
// (dm.datadev, dm.metadatadev), a pool that somebody else has made (dm.thinpooldev), or one
// that is made by LVM on an empty device (dm.directlvm_device, lvm.go). The first two are
// activated by whoever opens the store first after a boot, and stay so.
//
//	HOME/devicemapper/data, metadata    the files of loop-lvm
//
// Names in device-mapper are Docker's with another beginning: layerfs-MAJOR:MINOR-INODE-pool
// and layerfs-MAJOR:MINOR-INODE-TREE, with the numbers of HOME.
//
// # Records
//
// In the index of the store (driver.State):
//
//	pool             made: what the pool was made of, and its transaction id
//	lvm              the device that is being made a pool
//	device/NAME      record: number and size of a thin device, and what is being done to it
//	unfinished/NAME  the state of such a record if it is not ready
//
// Every change of the pool's metadata is recorded as intended, carried out, given the next
// transaction id, and recorded as done. After a crash the pool's transaction id says
// whether it was carried out. A pool whose transaction id is neither is another one, or
// has lost its metadata, and is refused. Numbers of devices are never used twice. The origin
// of a snapshot is suspended only while its name is in the snapshot's record, so that the
// next command can resume it.
//
// # Lock
//
// HOME/devicemapper/lock is held for every change (Pool.locked), so that a change that is
// recorded as intended and whose lock is free is one whose process has died.
package devicemapper
