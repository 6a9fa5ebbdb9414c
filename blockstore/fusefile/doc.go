// Package fusefile shows block devices as the files of one flat directory over
// FUSE: what losetup, qemu-img, fuse2fs, dd or a virtual machine can open without
// knowing anything of pools. It knows nothing of pools either, only of Devices.
//
// # What a file is
//
// A file is as long as its device. It is a regular file, but behaves like a block
// device wherever the two differ and a program could be told so:
//
//	write at or past the end        ENOSPC; one that begins before it is short
//	O_TRUNC, truncate to 0          success, and nothing happens
//	truncate to the size            success
//	truncate to any other size      EINVAL to shrink, EPERM to grow
//	fallocate PUNCH_HOLE            reads as zeros, whole blocks are unmapped
//	fallocate ZERO_RANGE            reads as zeros, blocks stay mapped
//	the same past the end           cut off with KEEP_SIZE, else ENOSPC
//	fallocate, other modes          EOPNOTSUPP: nothing here can promise space
//	lseek SEEK_DATA, SEEK_HOLE      what is mapped
//	create, unlink, rename, mkdir   EPERM: `layerfs thin` does that
//	chmod, chown                    EPERM, except to what already is
//	utimes                          kept until the kernel forgets the file
//	extended attributes             EOPNOTSUPP
//
// Truncation to 0 must succeed because dd and cp open with O_TRUNC, which
// reaches a FUSE server as nothing else than that. It cannot empty the device
// either: `dd of=FILE count=1` replaces one block of a disk, not the disk. The
// price: what a program leaves out because it believes the file to be empty keeps
// its old content. cp does that with the holes of a sparse file, on a device that
// is not new: use cp --sparse=never, or dd.
//
// Size 0 is never announced: ATOMIC_O_TRUNC is not negotiated, with which the
// kernel would set it by itself.
//
// # Life of a device
//
// The first open of a file opens its device, which the pool grants to one
// process at a time (EBUSY); all handles of the mount share it. The last release
// flushes and closes it. The kernel sends releases after close(2) has returned:
// for a moment after the last close the device is still in use. Errors of the
// last writes reach whoever calls fsync or close, those of a release only the log.
//
// A file is identified by its device's id, not by its name. A name that meanwhile
// means another device is noticed when it is opened; ESTALE has the kernel look
// it up again.
//
// # What the kernel may cache
//
//   - Names and attributes for a second: devices come, go and grow without us.
//     Absence not at all.
//   - Pages as long as the device is open, when nobody else can change it. The
//     first open drops what is left from earlier, before it is answered.
//   - Nothing that is dirty, except in shared mappings: without the writeback
//     cache, what write(2) has returned for is in the device, and so in a
//     snapshot that is made after.
//
// The file system does not have the kernel guess from times and sizes whether
// pages are stale (EXPLICIT_INVAL_DATA): it would drop them after each write.
// ASYNC_DIO is not negotiated because asynchronous direct writes leave stale
// pages behind.
//
// # Loop devices
//
// A loop device sends discards and zeroing as PUNCH_HOLE. It takes f_bsize, the
// size of a pool's block, as its discard granularity, so that fstrim does not
// bother with less (loop_config_discard).
//
// # Waiting
//
// A write may wait for space in the pool. Signals interrupt it (EINTR) if the
// device is Interruptible; otherwise not even SIGKILL ends its caller before it
// is answered. Waiting requests keep no others from being served (see fusedev).
//
// The process that serves the files must not use them itself: Go's scheduler
// does not expect a page fault or epoll_ctl to wait, and would not run the handler.
//
// # Lock order, outermost first
//
//	dirHandle.mu       one open directory
//	node.openMu        opening and closing a device
//	  FS.mu, node.mu   leaves
//
// openMu is held while a device is opened, and flushed and closed for the last
// release, and while the kernel drops the pages of a file that nobody has open:
// no request on that file can be running that the kernel would wait for. Nothing
// is held while a device is read, written, zeroed, searched or flushed for a
// caller.
package fusefile
