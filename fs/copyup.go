package fs

import (
	"errors"
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
	// to is the branch that the copy is for; nil for the one that the policy says.
	to *branches.Branch
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
	f.applyOverride(branch, from.fd, from.name, &st)
	links := f.indexes[to]
	cp := &copied{to: to, from: branch, tmp: to.Work.Name()}
	cp.back, err = f.copyBody(n, from, cp, &st, o.cut)
	if err == nil {
		cp.index, err = links.indexCopy(n, from, cp.tmp, &st)
	}
	if err == nil {
		err = f.placeCopy(n, cp)
	}
	if err != nil && n.changeable() != to {
		if cp.back != nil {
			cp.back.release()
		}
		links.unindexCopy(cp.index)
		to.Work.Discard(cp.tmp)
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
		back, err = f.copyContent(low, to, st, c)
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
	return back, f.syncCopy(back)
}

func (f *FS) copyContent(low, to location, st *sys.Stat, c *cut) (*backing, error) {
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
	dst, err := sys.OpenIn(to.fd, to.name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0600)
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
// nothing in src would mean something in dst (CVE-2023-0386).
func wouldElevate(src, dst *branches.Branch) bool { return src.NoSuid && !dst.NoSuid }

// copyAttributes gives the copy at to, in dst, what st and the extended
// attributes of the file at from, in src, say: owner, attributes, mode, and last
// the times; c is a truncation or nil.
func (f *FS) copyAttributes(from location, src *branches.Branch, to location, dst *branches.Branch, st *sys.Stat, c *cut) error {
	mode := st.Mode & 07777
	if wouldElevate(src, dst) && !st.IsDir() {
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
	if err := copyXattrs(from, to, dst, c != nil || wouldElevate(src, dst)); err != nil {
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
// by value. What the user may not set is left out, as cp -a does, and what the
// branch dst may lack; other errors end the copy-up.
func copyXattrs(from, to location, dst *branches.Branch, noCapability bool) error {
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
			if !dst.Attr.MayLack(a) {
				return err
			}
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
	case len(n.names) == 0 || n.opens > 0 && f.mayStayOpen():
		n.back = back
	default:
		back.release()
	}
	if old != nil {
		old.release()
	}
}

// copyUpDir makes the directory n in a writable branch, above or below where it
// is. Its content stays where it is.
// Preconditions: n.copyMu is held and n is not where it is to go.
func (f *FS) copyUpDir(n *node, o copyOptions) error {
	to, parent, err := f.copyTarget(n, o.to)
	switch {
	case err != nil:
		return err
	case parent == nil && n.id == rootID: // hidden in that branch by an opaque root above
		return unix.EROFS
	case parent == nil: // removed, and somebody is still in it
		return unix.ENOENT
	}
	if err := f.copyUpTo(parent, to); err != nil {
		return err
	}
	cp := &copied{to: to, tmp: to.Work.Name()}
	was, err := f.copyDirBody(n, cp)
	if err == nil && was.Sealed() && !o.sealed {
		err = unix.EPERM
	}
	if err == nil {
		err = f.placeDir(n, parent, cp)
	}
	if err != nil {
		if n.dir.tree.Part(to) == nil {
			to.Work.Discard(cp.tmp)
		}
		if err == errMoved {
			return f.copyUpDir(n, o)
		}
		return err
	}
	to.CopyUps.Add(1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if st, err := f.statLocked(n); err != nil || st.UID != was.UID || st.GID != was.GID || st.Mode != was.Mode {
		f.inval(n, -1)
	}
	return nil
}

// errMoved: a directory was renamed in another branch while it was copied.
var errMoved = errors.New("renamed meanwhile")

// placeDir moves the finished copy of the directory n to its place in parent,
// unless it is no longer there.
func (f *FS) placeDir(n, parent *node, cp *copied) error {
	parent.dir.mu.Lock()
	defer parent.dir.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case len(n.names) == 0:
		return unix.ENOENT
	case n.names[0].dir != parent:
		return errMoved
	}
	name := n.names[0].name
	to, err := acquire(parent.dir.tree, parent.dir.tree.Part(cp.to), name)
	if err != nil {
		return err
	}
	defer to.release()
	tmp := cp.at()
	return sys.KeepTimes(to.fd, func() error {
		if err := sys.Rename(tmp.fd, tmp.name, to.fd, name, sys.RenameNoReplace); err != nil {
			return err
		}
		n.dir.tree.Add(cp.to)
		f.rekeyLocked(n, cp.to, to.fd)
		f.watcher.watch(n)
		return f.syncPlace(to.fd)
	})
}

// rekeyLocked brings up to date what the directory n is known by, after it got a
// part in b, whose parent is dirfd: lookups go by the lowest part where no
// branch that is only read has one (Resolution.Origin). Preconditions: n.mu is held.
func (f *FS) rekeyLocked(n *node, b *branches.Branch, dirfd int) {
	parts := n.dir.tree.Parts()
	if len(parts) == 1 || parts[len(parts)-1].Branch != b {
		return
	}
	for _, p := range parts {
		if !p.Branch.Writable() {
			return
		}
	}
	if st, err := sys.StatAt(dirfd, n.names[0].name, 0); err == nil {
		f.table.rekey(n, f.identity(b, &st))
	}
}

// copyDirBody makes the copy of directory n under its temporary name and
// returns the attributes that n has had so far.
func (f *FS) copyDirBody(n *node, cp *copied) (sys.Stat, error) {
	to := cp.at()
	if err := sys.Mkdir(to.fd, to.name, 0700); err != nil {
		return sys.Stat{}, err
	}
	n.mu.Lock()
	st, err := f.statLocked(n)
	n.mu.Unlock()
	if err != nil {
		return st, err
	}
	if n.fixed != nil {
		return st, f.copyAttributes(to, cp.to, to, cp.to, &st, nil)
	}
	from, err := f.topOf(n.dir.tree)
	if err != nil {
		return st, err
	}
	defer from.release()
	return st, f.copyAttributes(from, n.dir.tree.Parts()[0].Branch, to, cp.to, &st, nil)
}

func (f *FS) topOf(d *branches.Dir) (location, error) {
	return acquire(d, d.Parts()[0], "")
}
