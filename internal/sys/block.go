package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/fs.h.
const (
	blkGetSize64 = 0x80081272
	blkDiscard   = 0x1277
)

// BlockSize returns the size of the block device fd in bytes.
func BlockSize(fd int) (int64, error) {
	var n uint64
	err := retry("blkgetsize64", func() error {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), blkGetSize64, uintptr(unsafe.Pointer(&n))); e != 0 {
			return e
		}
		return nil
	})
	return int64(n), err
}

// BlockDiscard tells the block device fd that length bytes at off are not needed.
func BlockDiscard(fd int, off, length int64) error {
	r := [2]uint64{uint64(off), uint64(length)}
	return retry("ioctl", func() error {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), blkDiscard, uintptr(unsafe.Pointer(&r))); e != 0 {
			return e
		}
		return nil
	})
}

// LoopAttach makes a loop device of the file open at file and returns its path. It
// stays until LoopDetach.
func LoopAttach(file int, name string) (path string, err error) {
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer Close(control)
	for range 32 { // others may take the same free device
		path, err = loopTake(control, file, name)
		if err != unix.EBUSY {
			break
		}
	}
	return path, err
}

func loopTake(control, file int, name string) (string, error) {
	n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return "", err
	}
	path := loopPath(n)
	dev, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer Close(dev)
	if err := retry("ioctl", func() error { return unix.IoctlSetInt(dev, unix.LOOP_SET_FD, file) }); err != nil {
		return "", err
	}
	var info unix.LoopInfo64
	copy(info.File_name[:len(info.File_name)-1], name)
	if err := unix.IoctlLoopSetStatus64(dev, &info); err != nil {
		_ = unix.IoctlSetInt(dev, unix.LOOP_CLR_FD, 0)
		return "", err
	}
	return path, nil
}

// LoopDetach takes a loop device from its file.
func LoopDetach(path string) error { return loopIoctl(path, unix.LOOP_CLR_FD) }

// LoopGrow has a loop device notice that its file has become larger.
func LoopGrow(path string) error { return loopIoctl(path, unix.LOOP_SET_CAPACITY) }

func loopIoctl(path string, cmd uint) error {
	dev, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer Close(dev)
	return retry("ioctl", func() error { return unix.IoctlSetInt(dev, cmd, 0) })
}
