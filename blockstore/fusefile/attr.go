package fusefile

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	fileMode = unix.S_IFREG | 0o600
	dirMode  = unix.S_IFDIR | 0o700

	pageSize = 4096
	sector   = 512 // what st_blocks counts
)

// Lookup implements fuse.RawFileSystem.
func (f *FS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if in.NodeId != rootID {
		return fuse.ENOTDIR
	}
	e, err := f.devices.Lookup(name)
	if err != nil {
		return status(err)
	}
	f.fillEntry(f.remember(e), out)
	return fuse.OK
}

// fillEntry answers a lookup of n.
func (f *FS) fillEntry(n *node, out *fuse.EntryOut) {
	out.NodeId = n.id
	out.SetEntryTimeout(valid)
	out.SetAttrTimeout(valid)
	f.fillAttr(n, &out.Attr)
}

// fillAttr fills in what is known of n.
func (f *FS) fillAttr(n *node, out *fuse.Attr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	*out = fuse.Attr{
		Ino: n.id, Mode: fileMode, Nlink: 1, Owner: fuse.Owner{Uid: f.opts.UID, Gid: f.opts.GID},
		Size: uint64(n.known.Size), Blocks: uint64(n.known.Used) / sector,
		Blksize: uint32(min(f.devices.BlockSize(), maxWrite)), // programs make buffers as large as that
	}
	out.SetTimes(&n.atime, &n.mtime, &n.ctime)
}

// refresh learns anew what n is like.
func (f *FS) refresh(n *node) error {
	known := n.entry()
	e, err := f.devices.Lookup(known.Name)
	if err == nil && nodeID(e) != n.id {
		err = unix.ESTALE
	}
	if err != nil {
		if n.active.Load() == nil {
			return notFoundIsStale(err)
		}
		e = known // it has another name now, but it is still there
	}
	f.learn(n, e)
	return nil
}

// learn takes over what the pool says of n now. Of the size the device itself
// knows best, if it is open.
func (f *FS) learn(n *node, e Entry) {
	if a := n.active.Load(); a != nil && a.acquire() {
		e.Size = a.Size()
		f.done(n, a)
	}
	n.mu.Lock()
	was := n.known.Size
	n.known = e
	n.mu.Unlock()
	// In the page where the file used to end the kernel has zeros behind the
	// end, which are not what the device has there.
	if tail := was % pageSize; e.Size > was && tail != 0 && f.notify != nil {
		if err := f.notify.InvalInode(n.id, was-tail, pageSize); err != nil {
			f.opts.Log.Printf("device %s has grown, but the kernel was not told: %v", e.Name, err)
		}
	}
}

// GetAttr implements fuse.RawFileSystem.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(valid)
	if in.NodeId == rootID {
		f.fillRoot(&out.Attr)
		return fuse.OK
	}
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	if err := f.refresh(n); err != nil {
		return status(err)
	}
	f.fillAttr(n, &out.Attr)
	return fuse.OK
}

func (f *FS) fillRoot(out *fuse.Attr) {
	*out = fuse.Attr{Ino: rootID, Mode: dirMode, Nlink: 2, Owner: fuse.Owner{Uid: f.opts.UID, Gid: f.opts.GID}, Blksize: pageSize}
	out.SetTimes(&f.started, &f.started, &f.started)
}

// SetAttr implements fuse.RawFileSystem. Whatever would change nothing is
// allowed: programs that copy files set attributes without need.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	get := fuse.GetAttrIn{InHeader: in.InHeader}
	if code := f.GetAttr(nil, &get, out); !code.Ok() {
		return code
	}
	a := &out.Attr
	if mode, ok := in.GetMode(); ok && mode&07777 != a.Mode&07777 {
		return fuse.EPERM
	}
	if uid, ok := in.GetUID(); ok && uid != a.Uid {
		return fuse.EPERM
	}
	if gid, ok := in.GetGID(); ok && gid != a.Gid {
		return fuse.EPERM
	}
	if size, ok := in.GetSize(); ok && size != 0 && size != a.Size {
		if size > a.Size {
			return fuse.EPERM // ftruncate(2): the file system does not support extending
		}
		return fuse.EINVAL // do_sys_ftruncate, on what is not a regular file
	}
	if in.NodeId == rootID {
		return fuse.OK
	}
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	n.setTimes(in)
	f.fillAttr(n, a)
	return fuse.OK
}

func (n *node) setTimes(in *fuse.SetAttrIn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if t, ok := in.GetATime(); ok {
		n.atime = t
	}
	if t, ok := in.GetMTime(); ok {
		n.mtime = t
	}
	n.ctime = time.Now()
}

// modified notes that n's data was changed. It comes after the change: a flush
// that begins before need not cover it.
func (n *node) modified(a *active) {
	a.wrote.Store(true)
	now := time.Now()
	n.mu.Lock()
	n.mtime, n.ctime = now, now
	n.mu.Unlock()
}
