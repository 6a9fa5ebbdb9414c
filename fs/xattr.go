package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// xattrAt runs fn where n's attributes are.
func (f *FS) xattrAt(id uint64, fn func(n *node, at location) error) fuse.Status {
	n, code := f.node(id)
	if !code.Ok() {
		return code
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fixed != nil && n.changeableLocked() == nil {
		return fuse.ENODATA // a mount point has no attributes to show
	}
	at, err := f.locateLocked(n)
	if err != nil {
		return status(err)
	}
	defer at.release()
	return status(fn(n, at))
}

// GetXAttr implements fuse.RawFileSystem.
func (f *FS) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (size uint32, code fuse.Status) {
	if whiteout.ReservedXattr(attr) {
		return 0, fuse.ENODATA
	}
	// The kernel asks for it before the first write to a file.
	caps := attr == capability && !f.opts.Outside
	if caps && f.table.get(in.NodeId).isCapless() {
		return 0, fuse.ENODATA
	}
	code = f.xattrAt(in.NodeId, func(n *node, at location) error {
		got, err := sys.GetXattrInto(at.fd, at.name, attr, dest)
		if caps {
			n.capless = err == unix.ENODATA
		}
		size = uint32(max(got, 0))
		return err
	})
	return size, code
}

// capability is where a file's capabilities are.
const capability = "security.capability"

// isCapless reports whether it is known that n has no capabilities.
func (n *node) isCapless() bool {
	if n == nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.capless
}

// ListXAttr implements fuse.RawFileSystem.
func (f *FS) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (size uint32, code fuse.Status) {
	code = f.xattrAt(in.NodeId, func(_ *node, at location) error {
		attrs, err := sys.ListXattr(at.fd, at.name)
		if err != nil {
			return err
		}
		var list []byte
		for _, a := range attrs {
			if !whiteout.ReservedXattr(a) {
				list = append(append(list, a...), 0)
			}
		}
		size = uint32(len(list))
		if len(dest) > 0 && len(list) > len(dest) {
			return unix.ERANGE
		}
		copy(dest, list)
		return nil
	})
	if code == fuse.ENODATA {
		return 0, fuse.OK
	}
	return size, code
}

// SetXAttr implements fuse.RawFileSystem.
func (f *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	return f.changeXattr(in.NodeId, attr, func(at location) error {
		if err := sys.SetXattr(at.fd, at.name, attr, data, int(in.Flags)); err != nil {
			return err
		}
		// The kernel asks for it with default ACLs too, where it means nothing
		// (posix_acl_update_mode).
		if in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID == 0 || attr != aclAccess {
			return nil
		}
		st, err := sys.StatAt(at.fd, at.name, 0)
		if err != nil || st.Mode&unix.S_ISGID == 0 {
			return err
		}
		return sys.ChmodAt(at.fd, at.name, st.Mode&07777&^unix.S_ISGID)
	})
}

// RemoveXAttr implements fuse.RawFileSystem.
func (f *FS) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	return f.changeXattr(in.NodeId, attr, func(at location) error {
		return sys.RemoveXattr(at.fd, at.name, attr)
	})
}

func (f *FS) changeXattr(id uint64, attr string, change func(location) error) fuse.Status {
	if whiteout.ReservedXattr(attr) {
		return fuse.EPERM
	}
	n, code := f.node(id)
	if !code.Ok() {
		return code
	}
	if err := f.copyUp(n); err != nil {
		return status(err)
	}
	if attr == aclAccess {
		if err := f.unstub(n); err != nil {
			return status(err)
		}
	}
	if attr == aclDefault && n.isDir() {
		n.dir.mu.Lock()
		defer n.dir.mu.Unlock()
		n.dir.acl = aclUnknown
	}
	return f.xattrAt(id, func(n *node, at location) error {
		n.forgetTouchLocked()
		n.capless = false
		return change(at)
	})
}
