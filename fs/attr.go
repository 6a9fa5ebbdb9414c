package fs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// status is the errno that the caller of a FUSE operation sees.
func status(err error) fuse.Status { return fuse.Status(errs.Errno(err)) }

// branchOf returns the branch that answers for n's attributes.
// Preconditions: n.mu is held.
func (f *FS) branchOfLocked(n *node) *branches.Branch {
	switch {
	case n.isDir():
		if parts := n.dir.tree.Parts(); len(parts) > 0 {
			return parts[0].Branch
		}
		return nil
	case n.home != nil:
		return n.home
	}
	if n.low.part == nil {
		return nil // in a branch that is no longer there
	}
	return n.low.part.Branch
}

// statLocked returns the attributes of n as they are on disk, overrides
// applied. Preconditions: n.mu is held.
func (f *FS) statLocked(n *node) (sys.Stat, error) {
	if n.isDir() && len(n.dir.tree.Parts()) == 0 && n.fixed != nil {
		return *n.fixed, nil
	}
	at, err := f.locateLocked(n)
	if err != nil {
		return sys.Stat{}, err
	}
	defer at.release()
	st, err := sys.StatAt(at.fd, at.name, 0)
	if err != nil {
		return st, err
	}
	err = f.complete(f.branchOfLocked(n), at.fd, at.name, &st)
	n.broken = err != nil
	return st, err
}

// fillLocked translates attributes of n's file to what the mount shows.
// Preconditions: n.mu is held.
func (f *FS) fillLocked(n *node, st *sys.Stat, out *fuse.Attr) {
	f.fill(st, out)
	out.Ino = f.showIno(n.ino)
	if n.isDir() {
		// A merged directory has one link, which tells find not to count on
		// the number of subdirectories (ovl_getattr).
		if f.opts.StaticNlink || n.dir.tree.Merged() {
			out.Nlink = 1
		}
	} else {
		out.Nlink = uint32(max(int64(st.Nlink)+int64(n.adj), 0))
	}
	if len(n.names) == 0 && n.id != rootID && (n.isDir() || n.home == nil && st.Nlink == 1) {
		out.Nlink = 0 // a lower that was covered does not say so itself
	}
}

func (f *FS) fill(st *sys.Stat, out *fuse.Attr) {
	out.Size, out.Blocks, out.Blksize = st.Size, st.Blocks, st.Blksize
	out.Atime, out.Atimensec = uint64(st.Atime.Sec), st.Atime.Nsec
	out.Mtime, out.Mtimensec = uint64(st.Mtime.Sec), st.Mtime.Nsec
	out.Ctime, out.Ctimensec = uint64(st.Ctime.Sec), st.Ctime.Nsec
	out.Mode, out.Nlink, out.Rdev = st.Mode, st.Nlink, st.Rdev
	out.Uid, out.Gid = f.shownUID(st.UID), f.shownGID(st.GID)
}

// setValid sets how long the kernel may keep an answer.
func (f *FS) setValid(sec *uint64, nsec *uint32) {
	timeout := time.Duration(f.timeout.Load())
	*sec = uint64(timeout / time.Second)
	*nsec = uint32(timeout % time.Second)
}

// attr answers with n's attributes.
func (f *FS) attr(n *node, out *fuse.AttrOut) fuse.Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	st, err := f.statLocked(n)
	if err != nil {
		return status(err)
	}
	f.fillLocked(n, &st, &out.Attr)
	f.setValid(&out.AttrValid, &out.AttrValidNsec)
	return fuse.OK
}

// GetAttr implements fuse.RawFileSystem.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	return f.attr(n, out)
}

// Statx implements fuse.RawFileSystem: GetAttr with the birth time.
func (f *FS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	st, err := f.statLocked(n)
	if err != nil {
		return status(err)
	}
	var a fuse.Attr
	f.fillLocked(n, &st, &a)
	out.Statx = fuse.Statx{
		Mask: unix.STATX_BASIC_STATS | unix.STATX_BTIME, Blksize: a.Blksize,
		Nlink: a.Nlink, Uid: a.Uid, Gid: a.Gid, Mode: uint16(a.Mode),
		Ino: a.Ino, Size: a.Size, Blocks: a.Blocks,
		RdevMajor: unix.Major(uint64(a.Rdev)), RdevMinor: unix.Minor(uint64(a.Rdev)),
	}
	out.Atime.FromStatxTimestamp(&st.Atime)
	out.Btime.FromStatxTimestamp(&st.Btime)
	out.Ctime.FromStatxTimestamp(&st.Ctime)
	out.Mtime.FromStatxTimestamp(&st.Mtime)
	f.setValid(&out.AttrValid, &out.AttrValidNsec)
	return fuse.OK
}

// SetAttr implements fuse.RawFileSystem. The kernel has checked permissions
// and holds the inode's lock, so two changes of one file never meet.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	if err := f.setAttr(n, in); err != nil {
		return status(err)
	}
	// The change is made. Asking twice makes sure that no shortage of the
	// moment is taken for its failure.
	if code := f.attr(n, out); code.Ok() {
		return code
	}
	return f.attr(n, out)
}

func (f *FS) setAttr(n *node, in *fuse.SetAttrIn) error {
	if size, ok := in.GetSize(); ok {
		if err := f.truncate(n, &cut{int64(size), in.Valid&fuse.FATTR_KILL_SUIDGID != 0, in.Caller.Owner}); err != nil {
			return err
		}
	}
	const touches = fuse.FATTR_MODE | fuse.FATTR_UID | fuse.FATTR_GID |
		fuse.FATTR_ATIME | fuse.FATTR_MTIME | fuse.FATTR_ATIME_NOW | fuse.FATTR_MTIME_NOW
	if in.Valid&touches == 0 {
		return nil
	}
	if err := f.copyUp(n); err != nil {
		return err
	}
	if mode, ok := in.GetMode(); ok && mode&unix.S_IRUSR == 0 {
		if err := f.unstub(n); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	at, err := f.locateLocked(n)
	if err != nil {
		return err
	}
	defer at.release()
	n.forgetTouchLocked()
	b := n.changeableLocked()
	if err := f.chown(b, at, in); err != nil {
		return err
	}
	if mode, ok := in.GetMode(); ok {
		if err := f.chmod(b, at, mode); err != nil {
			return err
		}
	}
	return f.setTimesLocked(n, at, in)
}

// setTimesLocked sets the times of n, which is at at: those that a settle keeps
// for it, too. Preconditions: n.mu is held.
func (f *FS) setTimesLocked(n *node, at location, in *fuse.SetAttrIn) error {
	if err := utimes(at, in); err != nil || n.back == nil || n.back.stub == nil {
		return err
	}
	d := n.back.stub.opened()
	if d == nil || d.times.Load() == nil {
		return nil
	}
	st, err := sys.StatAt(at.fd, at.name, 0)
	if err != nil {
		return err
	}
	t := *d.times.Load()
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_ATIME_NOW) != 0 {
		t.atime = sys.Timespec(st.Atime)
	}
	if in.Valid&(fuse.FATTR_MTIME|fuse.FATTR_MTIME_NOW) != 0 {
		t.mtime = sys.Timespec(st.Mtime)
	}
	d.times.Store(&t)
	return nil
}

func (f *FS) chown(b *branches.Branch, at location, in *fuse.SetAttrIn) error {
	uid, gid := ^uint32(0), ^uint32(0)
	if id, ok := in.GetUID(); ok {
		uid = f.storedUID(id)
	}
	if id, ok := in.GetGID(); ok {
		gid = f.storedGID(id)
	}
	if uid == ^uint32(0) && gid == ^uint32(0) {
		return nil
	}
	if f.opts.XattrPermissions != 0 {
		return f.updateOverride(b, at, uid, gid, ^uint32(0))
	}
	before, err := sys.StatAt(at.fd, at.name, 0)
	if err == nil {
		err = sys.ChownAt(at.fd, at.name, uid, gid)
	}
	if err != nil || in.Caller.Uid == 0 || before.Mode&unix.S_ISGID == 0 || before.Type() != unix.S_IFREG {
		return err
	}
	// What the kernel leaves to root, whom it takes for the caller (chown_common).
	after, err := sys.StatAt(at.fd, at.name, 0)
	if err != nil || after.Mode&f.killable(&before, in.Caller.Owner) == 0 {
		return err
	}
	return sys.ChmodAt(at.fd, at.name, after.Mode&07777&^f.killable(&before, in.Caller.Owner))
}

func (f *FS) chmod(b *branches.Branch, at location, mode uint32) error {
	if f.opts.XattrPermissions != 0 {
		return f.updateOverride(b, at, ^uint32(0), ^uint32(0), mode)
	}
	return sys.ChmodAt(at.fd, at.name, mode)
}

func utimes(at location, in *fuse.SetAttrIn) error {
	const times = fuse.FATTR_ATIME | fuse.FATTR_MTIME | fuse.FATTR_ATIME_NOW | fuse.FATTR_MTIME_NOW
	if in.Valid&times == 0 {
		return nil
	}
	a := timeArg(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec)
	m := timeArg(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec)
	return sys.UtimesAt(at.fd, at.name, a, m)
}

func timeArg(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&now != 0:
		return unix.Timespec{Nsec: sys.Now}
	case valid&set != 0:
		return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
	}
	return unix.Timespec{Nsec: sys.Omit}
}
