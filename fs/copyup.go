package fs

import (
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// cut is a truncation, which a copy-up that it causes does on the way: the
// copy is never seen with its old length, so that the two are one step.
type cut struct {
	size int64 // in bytes
	kill bool  // set-user-id and the like go, see killSuid
	who  fuse.Owner
}

// copyOptions are what a copy-up may have to do besides.
type copyOptions struct {
	cut *cut // nil for none
	// sealed files are copied too: the flags that make a file immutable or
	// append-only are about to be changed. Otherwise they refuse to.
	sealed bool
}

// copyUp makes n exist in the upper. It is built in the work directory and
// renamed into place, so that a crash leaves the old file or the whole new
// one. Preconditions: no dir.mu and no node.mu is held.
func (f *FS) copyUp(n *node) error {
	_, err := f.copyUpWith(n, copyOptions{})
	return err
}

// copyUpWith is copyUp with options; done is false if n was in the upper already.
func (f *FS) copyUpWith(n *node, o copyOptions) (done bool, err error) {
	if f.opts.ReadOnly {
		return false, unix.EROFS
	}
	if n.inUpper() {
		return false, nil
	}
	n.copyMu.Lock()
	defer n.copyMu.Unlock()
	if n.inUpper() {
		return false, nil
	}
	f.counters.copyUps.Add(1)
	if n.isDir() {
		return true, f.copyUpDir(n, o)
	}
	return true, f.copyUpFile(n, o)
}

// copyUpFile copies a file, symbolic link or special file.
// Preconditions: n.copyMu is held and n is not in the upper.
func (f *FS) copyUpFile(n *node, o copyOptions) error {
	low, err := acquire(n.low.dir, n.low.part, n.low.name)
	if err != nil {
		return err
	}
	defer low.release()
	st, err := sys.StatAt(low.fd, low.name, 0)
	if err != nil {
		return err
	}
	if st.Sealed() && !o.sealed {
		return unix.EPERM
	}
	f.applyOverride(n.low.part.Branch, low.fd, low.name, &st)
	tmp := f.work.Name()
	cp := &copied{tmp: tmp}
	cp.back, err = f.copyBody(n, low, tmp, &st, o.cut)
	if err == nil {
		cp.index, err = f.indexCopy(n, low, tmp, &st)
	}
	if err == nil {
		err = f.placeCopy(n, cp)
	}
	if err != nil && !n.inUpper() {
		if cp.back != nil {
			cp.back.release()
		}
		f.unindexCopy(cp.index)
		f.work.Discard(tmp)
	}
	if err != nil {
		return err
	}
	f.announceLoss(n, &st)
	return nil
}

// copied is a finished copy on its way to its place.
type copied struct {
	tmp   string   // its name in the work directory
	back  *backing // of a regular file
	index *indexed // of one with several names
}

// announceLoss tells the kernel when the copy of n could not keep the owner or
// the mode that it had: was is what the kernel may have in its cache.
func (f *FS) announceLoss(n *node, was *sys.Stat) {
	n.mu.Lock()
	now, err := f.statLocked(n)
	n.mu.Unlock()
	if err != nil || now.Mode != was.Mode || now.UID != was.UID || now.GID != was.GID {
		f.inval(n, -1)
	}
}

// copyBody makes the copy of n under the temporary name tmp, complete in data
// and attributes; st is what n has in the lower, overrides applied. For a
// regular file the open copy is returned.
func (f *FS) copyBody(n *node, low location, tmp string, st *sys.Stat, c *cut) (*backing, error) {
	var back *backing
	var err error
	switch st.Type() {
	case unix.S_IFREG:
		back, err = f.copyContent(n, low, tmp, st, c)
	case unix.S_IFLNK:
		var target []byte
		if target, err = sys.Readlink(low.fd, low.name); err == nil {
			err = sys.Symlink(string(target), f.work.Tmp, tmp)
		}
	default:
		err = f.makeSpecial(f.work.Tmp, tmp, st.Mode, st.Rdev)
	}
	if err != nil {
		return back, err
	}
	if err := f.copyAttributes(low, location{f.work.Tmp, tmp, noRelease}, st, n.low.part.Branch, c); err != nil {
		return back, err
	}
	if err := f.setOrigin(f.work.Tmp, tmp, n.typ, n.ino); err != nil {
		return back, err
	}
	return back, f.syncCopy(back)
}

func (f *FS) copyContent(n *node, low location, tmp string, st *sys.Stat, c *cut) (*backing, error) {
	src, err := sys.OpenUntouched(low.fd, low.name, 0)
	if err == unix.EXDEV { // a file that something is mounted on shows as an empty one
		src, err = -1, nil
	}
	if err != nil {
		return nil, err
	}
	if src >= 0 {
		defer sys.Close(src)
	}
	dst, err := sys.OpenIn(f.work.Tmp, tmp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0600)
	if err != nil {
		return nil, err
	}
	back := f.newBacking(dst, true)
	if src >= 0 {
		size := int64(st.Size)
		if c != nil {
			size = min(size, c.size)
		}
		f.counters.copiedBytes.Add(size)
		err = sys.CopyData(dst, src, size)
	}
	if err == nil && c != nil && c.size > int64(st.Size) {
		err = sys.Ftruncate(dst, c.size)
	}
	return back, err
}

// wouldElevate reports whether a set-user-id bit or a capability that means
// nothing in b would mean something in the upper (CVE-2023-0386).
func (f *FS) wouldElevate(b *branches.Branch) bool {
	return b.NoSuid && !f.stack.Upper().NoSuid
}

// copyAttributes gives the copy at to what st and the extended attributes of
// the file at from, which lies in branch, say: owner, attributes, mode, and
// last the times; c is a truncation or nil.
func (f *FS) copyAttributes(from, to location, st *sys.Stat, branch *branches.Branch, c *cut) error {
	mode := st.Mode & 07777
	if f.wouldElevate(branch) && !st.IsDir() {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	mtime := sys.Timespec(st.Mtime)
	if c != nil {
		mtime.Nsec = sys.Omit // the copy is new
		if c.kill {
			mode &^= f.killable(st, c.who)
		}
	}
	if f.opts.XattrPermissions != 0 {
		kept := *st
		kept.Mode = st.Type() | mode
		if err := f.setOverride(to.fd, to.name, &kept); err != nil {
			return err
		}
	} else if err := sys.ChownAt(to.fd, to.name, st.UID, st.GID); err != nil {
		if err != unix.EPERM && err != unix.EINVAL {
			return err
		}
		// A user cannot give files away, nor to an owner that his namespace
		// does not know: the copy is his, and loses what its owner lent.
		if st.UID != f.euid || st.GID != f.egid {
			mode &^= unix.S_ISUID | unix.S_ISGID
		}
	}
	if err := f.copyXattrs(from, to, c != nil || f.wouldElevate(branch)); err != nil {
		return err
	}
	if st.Type() != unix.S_IFLNK && f.opts.XattrPermissions == 0 {
		if err := sys.ChmodAt(to.fd, to.name, mode); err != nil {
			return err
		}
	}
	return sys.UtimesAt(to.fd, to.name, sys.Timespec(st.Atime), mtime)
}

// copyXattrs copies the extended attributes, ACLs and capabilities included,
// by value. What the user may not set is left out, as cp -a does; other
// errors end the copy-up.
func (f *FS) copyXattrs(from, to location, noCapability bool) error {
	attrs, err := sys.ListXattr(from.fd, from.name)
	if err == unix.EOPNOTSUPP || err == unix.EXDEV {
		return nil
	}
	if err != nil {
		return err
	}
	for _, a := range attrs {
		if whiteout.ReservedXattr(a) || a == "security.evm" || noCapability && a == "security.capability" {
			continue
		}
		v, err := sys.GetXattr(from.fd, from.name, a)
		if err == nil {
			err = sys.SetXattr(to.fd, to.name, a, v, 0)
		}
		switch err {
		case nil, unix.EPERM, unix.EACCES, unix.EOPNOTSUPP, unix.ENODATA:
		default:
			return err
		}
	}
	return nil
}

func (f *FS) syncCopy(back *backing) error {
	if back == nil {
		return nil
	}
	switch f.opts.Sync {
	case SyncAuto:
		return sys.Fdatasync(back.fd)
	case SyncStrict:
		return sys.Fsync(back.fd)
	}
	return nil
}

// placeCopy moves the finished copy to n's name and makes it n's file. A
// file that has lost its name meanwhile lives on without one.
func (f *FS) placeCopy(n *node, cp *copied) error {
	for {
		n.mu.Lock()
		var p place
		if len(n.names) > 0 {
			p = n.names[0]
		}
		n.mu.Unlock()
		if p.dir == nil {
			return f.adoptNameless(n, cp)
		}
		if err := f.copyUp(p.dir); err != nil {
			return err
		}
		done, err := f.placeCopyAt(n, p, cp)
		if done || err != nil {
			return err
		}
	}
}

// placeCopyAt is placeCopy for one name; done is false when n has no longer
// that name.
func (f *FS) placeCopyAt(n *node, p place, cp *copied) (done bool, err error) {
	p.dir.dir.mu.Lock()
	defer p.dir.dir.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	at := slices.IndexFunc(n.names, func(q place) bool { return q.dir == p.dir && q.name == p.name })
	if at < 0 {
		return false, nil
	}
	st, err := sys.StatAt(f.work.Tmp, cp.tmp, 0)
	if err != nil {
		return false, err
	}
	to, err := acquire(p.dir.dir.tree, p.dir.dir.tree.Upper(), p.name)
	if err != nil {
		return false, err
	}
	defer to.release()
	return true, sys.KeepTimes(to.fd, func() error {
		if err := sys.Rename(f.work.Tmp, cp.tmp, to.fd, p.name, sys.RenameNoReplace); err != nil {
			return err
		}
		// From here on it is n's file, whatever fails.
		n.names[at].upper = true
		f.table.alias(n, f.identity(f.stack.Upper(), &st))
		n.upper = true
		f.adoptIndexLocked(n, cp.index, st.Nlink)
		f.swapBackLocked(n, cp.back)
		return f.syncPlace(to.fd)
	})
}

// syncPlace makes a name that was put into the upper directory fd durable
// where that is asked for.
func (f *FS) syncPlace(fd int) error {
	if f.opts.Sync != SyncStrict {
		return nil
	}
	return sys.SyncDir(fd)
}

// adoptNameless keeps a copy whose file has no name any more, for those who
// have it open.
func (f *FS) adoptNameless(n *node, cp *copied) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	pin := cp.back
	if pin == nil {
		fd, err := sys.OpenIn(f.work.Tmp, cp.tmp, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		pin = f.newBacking(fd, false)
	}
	if err := sys.Unlink(f.work.Tmp, cp.tmp); err != nil {
		if cp.back == nil {
			pin.release()
		}
		return err
	}
	f.unindexCopy(cp.index)
	n.upper = true
	f.swapBackLocked(n, pin)
	return nil
}

// swapBackLocked replaces the open file of n, so that handles opened before
// the copy-up go on in the copy. Preconditions: n.mu is held.
func (f *FS) swapBackLocked(n *node, back *backing) {
	old := n.back
	n.back = nil
	switch {
	case back == nil:
	case len(n.names) == 0 || n.opens > 0 && f.mayStayOpen():
		n.back = back
	default:
		back.release()
	}
	if old != nil {
		old.release()
	}
}

// copyUpDir makes the directory n in the upper. Its content stays below.
// Preconditions: n.copyMu is held and n is not in the upper.
func (f *FS) copyUpDir(n *node, o copyOptions) error {
	n.mu.Lock()
	if len(n.names) == 0 { // removed, and somebody is still in it
		n.mu.Unlock()
		return unix.ENOENT
	}
	p := n.names[0]
	n.mu.Unlock()
	if err := f.copyUp(p.dir); err != nil {
		return err
	}
	tmp := f.work.Name()
	was, err := f.copyDirBody(n, tmp)
	if err == nil && was.Sealed() && !o.sealed {
		err = unix.EPERM
	}
	if err != nil {
		f.work.Discard(tmp)
		return err
	}
	p.dir.dir.mu.Lock()
	defer p.dir.dir.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.names) == 0 {
		f.work.Discard(tmp)
		return unix.ENOENT
	}
	to, err := acquire(p.dir.dir.tree, p.dir.dir.tree.Upper(), p.name)
	if err != nil {
		f.work.Discard(tmp)
		return err
	}
	defer to.release()
	err = sys.KeepTimes(to.fd, func() error {
		if err := sys.Rename(f.work.Tmp, tmp, to.fd, p.name, sys.RenameNoReplace); err != nil {
			return err
		}
		n.upper = true
		n.names[0].upper = true
		n.dir.tree.AddUpper()
		return f.syncPlace(to.fd)
	})
	if err != nil {
		if !n.upper {
			f.work.Discard(tmp)
		}
		return err
	}
	if st, err := f.statLocked(n); err != nil || st.UID != was.UID || st.GID != was.GID || st.Mode != was.Mode {
		f.inval(n, -1)
	}
	return nil
}

// copyDirBody makes the copy of directory n under the temporary name tmp and
// returns the attributes that n has had so far.
func (f *FS) copyDirBody(n *node, tmp string) (sys.Stat, error) {
	if err := sys.Mkdir(f.work.Tmp, tmp, 0700); err != nil {
		return sys.Stat{}, err
	}
	to := location{f.work.Tmp, tmp, noRelease}
	n.mu.Lock()
	st, err := f.statLocked(n)
	n.mu.Unlock()
	if err != nil {
		return st, err
	}
	if n.fixed != nil {
		return st, f.copyAttributes(to, to, &st, f.stack.Upper(), nil)
	}
	from, err := f.topOf(n.dir.tree)
	if err != nil {
		return st, err
	}
	defer from.release()
	return st, f.copyAttributes(from, to, &st, n.dir.tree.Parts()[0].Branch, nil)
}

func (f *FS) topOf(d *branches.Dir) (location, error) {
	return acquire(d, d.Parts()[0], "")
}
