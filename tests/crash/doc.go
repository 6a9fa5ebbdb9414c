// Package crash kills the daemon and cuts the power at every point where that
// could matter, and makes every system call fail that could.
//
// A case is one change of a small merged tree. TestKilled runs it again and
// again with a daemon that dies before its first, second, third ... system
// call that changes something on disk, until one survives; after the next
// mount the whole tree must be as before the change or as after it, the
// unions's promise in fs/doc.go. TestFaults runs it with every system call
// failing in turn; the caller must get the error or the change must have been
// made, and nothing may be half-done, neither at once nor after a remount.
//
// Both need a binary with the tag "faults" (package internal/faults): the one
// that $LAYERFS_FAULT_BIN names, or one that is built when the tests start.
//
// TestPowerCut runs a workload on a file system in a loop device and stops
// that file system dead (FS_IOC_SHUTDOWN without a flush), as a power cut
// would but for the order of sectors: what fsync has acknowledged must be there.
// $LAYERFS_TEST_CUTS says how many times.
//
// TestCopiesAreOrdered cuts the power after many files were copied up, of which nobody
// has asked for anything to be durable, when the journal has been written for another
// file: a copy that has its name must have its content. (Without sys.WriteOut, on ext4 all
// of them are zeros.)
//
// TestCopyIsWritten looks on several file systems by which call that is done, and makes it fail.
package crash
