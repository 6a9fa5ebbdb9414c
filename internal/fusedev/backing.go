package fusedev

import (
	"encoding/binary"
	"syscall"

	"github.com/layerfs/layerfs/internal/sys"
)

// ioctls of the device.
const (
	backingOpen  = 0x4010e501 // FUSE_DEV_IOC_BACKING_OPEN
	backingClose = 0x4004e502 // FUSE_DEV_IOC_BACKING_CLOSE
)

// OpenBacking registers the open file fd, for the kernel to read and write it
// itself, and returns what an answer to OPEN calls it by. It takes CAP_SYS_ADMIN
// outside any user namespace (EPERM), and a file system that is not stacked
// itself (ELOOP).
func (c *Conn) OpenBacking(fd int) (id int32, err error) {
	var arg [16]byte // struct fuse_backing_map
	binary.NativeEndian.PutUint32(arg[:], uint32(fd))
	c.fdMu.RLock()
	defer c.fdMu.RUnlock()
	if c.closed {
		return 0, syscall.ENODEV
	}
	n, err := sys.IoctlReturn(c.fd, backingOpen, arg[:])
	return int32(n), err
}

// CloseBacking takes back what OpenBacking has registered. Who has it open goes on.
func (c *Conn) CloseBacking(id int32) error {
	var arg [4]byte
	binary.NativeEndian.PutUint32(arg[:], uint32(id))
	c.fdMu.RLock()
	defer c.fdMu.RUnlock()
	if c.closed {
		return syscall.ENODEV
	}
	_, err := sys.IoctlReturn(c.fd, backingClose, arg[:])
	return err
}
