package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// The ioctls that mean the same on every file system; all others would be
// handed to a branch's file system without our knowing what they do.
const (
	fsIocGetFlags   = 0x80086601
	fsIocSetFlags   = 0x40086602
	fsIocGetVersion = 0x80087601
	fsIocFsGetXattr = 0x801c581f
	fsIocFsSetXattr = 0x401c5820
)

// Ioctl implements fuse.RawFileSystem: chattr and lsattr.
func (f *FS) Ioctl(_ <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, _ *fuse.IoctlOut, outbuf []byte) fuse.Status {
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	switch in.Cmd {
	case fsIocGetFlags, fsIocGetVersion, fsIocFsGetXattr:
		clear(outbuf)
		return status(f.ioctl(n, in.Cmd, outbuf))
	case fsIocSetFlags, fsIocFsSetXattr:
		if _, err := f.copyUpWith(n, copyOptions{sealed: true}); err != nil {
			return status(err)
		}
		err := f.ioctl(n, in.Cmd, inbuf)
		n.mu.Lock()
		if n.opens == 0 {
			n.closeRecentLocked() // what is allowed now is seen when it is opened anew
		}
		n.mu.Unlock()
		f.inval(n, -1) // it has a new ctime
		return status(err)
	}
	return fuse.Status(unix.ENOTTY)
}

func (f *FS) ioctl(n *node, cmd uint32, buf []byte) error {
	if !n.isDir() {
		b, err := f.openFile(n, false)
		if err != nil {
			return err
		}
		defer b.release()
		return sys.Ioctl(b.fd, cmd, buf)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	at, err := f.locateLocked(n)
	if err != nil {
		return err
	}
	defer at.release()
	fd, err := sys.OpenIn(at.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return sys.Ioctl(fd, cmd, buf)
}

// Readlink implements fuse.RawFileSystem.
func (f *FS) Readlink(_ <-chan struct{}, in *fuse.InHeader) (target []byte, code fuse.Status) {
	code = f.xattrAt(in.NodeId, func(_ *node, at location) (err error) {
		target, err = sys.Readlink(at.fd, at.name)
		return err
	})
	return target, code
}
