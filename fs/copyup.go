package fs

import (
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
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
	// to is the branch that the copy is for; nil for the one that the policy says.
	to *branches.Branch
	// moved: the file that is copied will be removed.
	moved bool
}

// copyUp makes n exist in a writable branch. It is built in the work directory
// and renamed into place, so that a crash leaves the old file or the whole new
// one. Preconditions: no dir.mu and no node.mu is held.
func (f *FS) copyUp(n *node) error {
	_, err := f.copyUpWith(n, copyOptions{})
	return err
}

// copyUpTo makes n exist in the writable branch to: a directory there, a file
// there or above. Preconditions: no dir.mu and no node.mu is held.
func (f *FS) copyUpTo(n *node, to *branches.Branch) error {
	_, err := f.copyUpWith(n, copyOptions{to: to})
	return err
}

// copyUpWith is copyUp with options; done is false if nothing was to be done.
func (f *FS) copyUpWith(n *node, o copyOptions) (done bool, err error) {
	if f.readOnly() {
		return false, unix.EROFS
	}
	if n.isWhere(o.to) {
		return false, nil
	}
	n.copyMu.Lock()
	defer n.copyMu.Unlock()
	if n.isWhere(o.to) {
		return false, nil
	}
	f.counters.copyUps.Add(1)
	if n.isDir() {
		return true, f.copyUpDir(n, o)
	}
	return true, f.copyUpFile(n, o)
}

// isWhere reports whether n is where a copy-up to that branch would bring it,
// in any writable branch for nil.
func (n *node) isWhere(to *branches.Branch) bool {
	if to != nil && n.isDir() {
		return n.dir.tree.Part(to) != nil
	}
	home := n.changeable()
	return home != nil && (to == nil || home.Index <= to.Index)
}

// copyTarget returns where a copy-up of n goes, and a directory in which it has
// a name; that is nil for a file that has lost its last name.
func (f *FS) copyTarget(n *node, to *branches.Branch) (*branches.Branch, *node, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	from := f.branchOfLocked(n)
	if len(n.names) == 0 {
		if to == nil {
			to = f.stack.Nearest(f.stack.Root(), from.Index)
		}
	} else if to == nil {
		to = f.stack.ForCopyUp(n.names[0].dir.dir.tree, from.Index)
	}
	if to == nil {
		return nil, nil, unix.EROFS
	}
	if len(n.names) == 0 {
		return to, nil, nil
	}
	return to, n.names[0].dir, nil
}

// copyUpFile copies a file, symbolic link or special file.
// Preconditions: n.copyMu is held and n is not where it is to go.
func (f *FS) copyUpFile(n *node, o copyOptions) error {
	to, _, err := f.copyTarget(n, o.to)
	if err != nil {
		return err
	}
	n.mu.Lock()
	branch := f.branchOfLocked(n)
	from, err := f.namedLocked(n)
	rel := n.low.path()
	n.mu.Unlock()
	if err != nil {
		return err
	}
	defer from.release()
	st, err := sys.StatAt(from.fd, from.name, 0)
	if err != nil {
		return err
	}
	if st.Sealed() && !o.sealed {
		return unix.EPERM
	}
	if err := f.complete(branch, from.fd, from.name, &st); err != nil {
		return err
	}
	links := f.indexes[to]
	cp := &copied{to: to, from: branch, rel: rel, tmp: to.Work.Name(), moved: o.moved}
	cp.back, err = f.copyBody(n, from, cp, &st, o.cut)
	if err == nil {
		cp.index, err = links.indexCopy(n, from, cp.tmp, &st)
	}
	if err == nil {
		err = f.placeCopy(n, cp)
	}
	if err != nil && n.changeable() != to {
		links.unindexCopy(cp.index)
		to.Work.Discard(cp.tmp)
		if cp.back != nil {
			cp.back.release() // a stub without a name takes its device along
		}
	}
	if err != nil {
		return err
	}
	to.CopyUps.Add(1)
	f.announceLoss(n, &st)
	return nil
}

// copied is a finished copy on its way to its place.
type copied struct {
	to, from *branches.Branch
	rel      string   // the path in from of a file that lies in a lower
	moved    bool     // see copyOptions
	tmp      string   // its name in the work directory of to
	back     *backing // of a regular file
	index    *indexed // of one with several names
}

func (c *copied) at() location { return location{c.to.Work.Tmp, c.tmp, noRelease} }

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

// copyBody makes the copy of n, whose file is low, under its temporary name,
// complete in data and attributes; st is what n has so far, overrides applied.
// For a regular file the open copy is returned.
func (f *FS) copyBody(n *node, low location, cp *copied, st *sys.Stat, c *cut) (*backing, error) {
	var back *backing
	var err error
	to := cp.at()
	switch st.Type() {
	case unix.S_IFREG:
		back, err = f.copyContent(n, low, cp, st, c)
	case unix.S_IFLNK:
		var target []byte
		if target, err = sys.Readlink(low.fd, low.name); err == nil {
			err = sys.Symlink(string(target), to.fd, to.name)
		}
	default:
		err = f.makeSpecial(to.fd, to.name, st.Mode, st.Rdev)
	}
	if err != nil {
		return back, err
	}
	if err := f.copyAttributes(low, cp.from, to, cp.to, st, c); err != nil {
		return back, err
	}
	if err := f.indexes[cp.to].setOrigin(cp.tmp, n.typ, n.ino); err != nil {
		return back, err
	}
	return back, f.syncCopy(back, cp.to)
}

// copyContent makes the copy of a regular file, with its content: all of it, or
// as a stub.
func (f *FS) copyContent(n *node, low location, cp *copied, st *sys.Stat, c *cut) (*backing, error) {
	src, err := f.openSource(n, low, cp)
	if err != nil {
		return nil, err
	}
	if src != nil {
		defer src.release()
	}
	to := cp.at()
	dst, err := sys.OpenIn(to.fd, to.name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0600)
	if err != nil {
		return nil, err
	}
	size, valid := sizeOfCopy(st, c)
	readable := f.euid == 0 || st.Mode&unix.S_IRUSR != 0 // see unstub
	if src != nil && readable && f.wantsBlocks(cp.from, size, src.stub != nil, cp.moved) {
		if f.opts.CopyUp == CopyAuto && src.stub == nil && f.reflinks.clone(dst, src.fd, cp.to.Dev, cp.from.Dev) {
			f.counters.copiedBytes.Add(valid)
			return f.newBacking(dst, true), sys.Ftruncate(dst, size)
		}
		back, err := f.copyByBlocks(n, src, dst, cp, st, c)
		if err != errNotByBlocks {
			if back == nil {
				sys.Close(dst)
			}
			return back, err
		}
	}
	back := f.newBacking(dst, true)
	if src != nil {
		f.counters.copiedBytes.Add(valid)
		if src.stub != nil {
			err = copyStub(dst, src, valid)
		} else {
			err = sys.CopyData(dst, src.fd, valid, f.opts.Sync != SyncVolatile)
		}
	}
	if err == nil && size > valid {
		err = sys.Ftruncate(dst, size)
	}
	return back, err
}

// openSource opens the file at low that is to be copied; nil for one that
// something is mounted on, which shows as an empty one.
func (f *FS) openSource(n *node, low location, cp *copied) (*backing, error) {
	fd, err := sys.OpenUntouched(low.fd, low.name, 0)
	if err == unix.EXDEV {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return f.withStub(n, cp.from, f.newBacking(fd, false))
}

// syncCopy sees to it that a copy in the work directory of b is whole after a power cut
// if it has been renamed from there.
func (f *FS) syncCopy(back *backing, b *branches.Branch) error {
	switch {
	case back == nil || f.opts.Sync == SyncVolatile:
		return nil
	case f.opts.Sync == SyncStrict:
		return sys.Fsync(back.fd)
	case b.Work.Ordered:
		return sys.WriteOut(back.fd)
	case back.stub != nil:
		return sys.Fsync(back.fd) // its attribute counts as data
	}
	return sys.Fdatasync(back.fd)
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
		if err := f.copyUpTo(p.dir, cp.to); err != nil {
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
	tmp := cp.at()
	st, err := sys.StatAt(tmp.fd, tmp.name, 0)
	if err != nil {
		return false, err
	}
	to, err := acquire(p.dir.dir.tree, p.dir.dir.tree.Part(cp.to), p.name)
	if err != nil {
		return false, err
	}
	defer to.release()
	return true, sys.KeepTimes(to.fd, func() error {
		if err := sys.Rename(tmp.fd, tmp.name, to.fd, p.name, sys.RenameNoReplace); err != nil {
			return err
		}
		// From here on it is n's file, whatever fails.
		for i := range n.names {
			n.names[i].in = nil
		}
		n.names[at].in = cp.to
		f.table.alias(n, f.identity(cp.to, &st))
		n.home = cp.to
		f.adoptIndexLocked(n, cp.index, st.Nlink)
		if cp.back != nil {
			f.inPlace(cp.back)
		}
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
	tmp := cp.at()
	if pin == nil {
		fd, err := sys.OpenIn(tmp.fd, tmp.name, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		pin = f.newBacking(fd, false)
	}
	if err := sys.Unlink(tmp.fd, tmp.name); err != nil {
		if cp.back == nil {
			pin.release()
		}
		return err
	}
	f.indexes[cp.to].unindexCopy(cp.index)
	n.home = cp.to
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
	case len(n.names) == 0 || f.staysOpenLocked(n):
		n.back = back
	default:
		back.release()
	}
	if old != nil {
		old.release()
	}
}
