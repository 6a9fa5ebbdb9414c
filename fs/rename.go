package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// side is one of the two names of a rename.
type side struct {
	parent *node
	name   string
	res    branches.Resolution // Kind NotFound when there is nothing to see
	n      *node               // nil when there is nothing to see; counted as looked up
	covers bool                // something below the branch of the rename shows at this name
	fd     int                 // parent in that branch
}

// Rename implements fuse.RawFileSystem, with RENAME_NOREPLACE and
// RENAME_EXCHANGE. RENAME_WHITEOUT would let users plant whiteouts.
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if in.Flags&^(sys.RenameNoReplace|sys.RenameExchange) != 0 {
		return fuse.EINVAL
	}
	from, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	to, code := f.node(in.Newdir)
	if !code.Ok() {
		return code
	}
	if whiteout.Reserved(oldName) {
		return fuse.ENOENT
	}
	if err := f.checkNew(newName); err != nil {
		return status(err)
	}
	return status(f.rename(&side{parent: from, name: oldName}, &side{parent: to, name: newName}, in.Flags))
}

func (f *FS) rename(from, to *side, flags uint32) error {
	if from.parent != to.parent {
		f.renameMu.Lock()
		defer f.renameMu.Unlock()
	}
	r := &renaming{from: from, to: to, exchange: flags&sys.RenameExchange != 0}
	err := f.planRename(r)
	for again := true; err == nil && again; {
		if err = f.readyRename(r); err == nil {
			again, err = f.renameIn(r, flags)
		}
	}
	return err
}

// renameIn does the rename in its branch; again means that it has to be done in
// another, which r then says.
func (f *FS) renameIn(r *renaming, flags uint32) (again bool, err error) {
	from, to := r.from, r.to
	unlock := lockDirs(from.parent, to.parent)
	defer unlock()
	defer f.releaseSide(r.on, from)
	defer f.releaseSide(r.on, to)
	for _, s := range []*side{from, to} {
		if err := f.resolveSide(r.on, s); err != nil {
			return false, err
		}
	}
	if err := f.checkRename(from, to, flags); err != nil || from.n == to.n {
		return false, err
	}
	if on, err := f.branchToRename(r); err != nil || on != r.on {
		defer func() { r.on = on }()
		return err == nil, err
	}
	if r.exchange {
		err = f.exchange(r.on, from, to)
	} else {
		err = f.replace(r.on, from, to)
	}
	if err == nil {
		from.parent.dir.changed()
		to.parent.dir.changed()
		f.touch(from.parent.dir.tree, r.on)
		f.touch(to.parent.dir.tree, r.on)
	}
	return false, err
}

// lockDirs locks the directories of a rename: an ancestor first, else in the
// order of their ids.
func lockDirs(a, b *node) (unlock func()) {
	return lockBoth(a, b, func(n *node) sync.Locker { return &n.dir.mu })
}

// rlockDirs is lockDirs for those who only look.
func rlockDirs(a, b *node) (unlock func()) {
	return lockBoth(a, b, func(n *node) sync.Locker { return n.dir.mu.RLocker() })
}

// lockBoth locks two directories, which may be one. Preconditions: renameMu is
// held if they are two.
func lockBoth(a, b *node, of func(*node) sync.Locker) (unlock func()) {
	if a == b {
		l := of(a)
		l.Lock()
		return l.Unlock
	}
	if isBelow(a, b) || !isBelow(b, a) && a.id > b.id {
		a, b = b, a
	}
	first, second := of(a), of(b)
	first.Lock()
	second.Lock()
	return func() { second.Unlock(); first.Unlock() }
}

// isBelow reports whether directory a lies somewhere in directory b.
// Preconditions: renameMu is held.
func isBelow(a, b *node) bool {
	for d := a.dir.tree; d != nil; d, _ = d.Place() {
		if d == b.dir.tree {
			return true
		}
	}
	return false
}

// resolveSide looks at s and opens its directory in the branch on.
func (f *FS) resolveSide(on *branches.Branch, s *side) (err error) {
	tree := s.parent.dir.tree
	s.fd = -1
	if err := f.lookAt(s); err != nil {
		return err
	}
	p := tree.Part(on)
	if p == nil {
		return unix.ESTALE
	}
	if s.fd, err = tree.Acquire(p); err != nil {
		return err
	}
	if len(tree.Below(on)) > 0 {
		s.covers, err = f.stack.LowerHas(tree, s.name, on)
	}
	return err
}

func (f *FS) releaseSide(on *branches.Branch, s *side) {
	if s.n != nil {
		f.table.forget(s.n.id, 1)
	}
	if s.fd > 0 {
		s.parent.dir.tree.Release(s.parent.dir.tree.Part(on))
	}
}

func (f *FS) checkRename(from, to *side, flags uint32) error {
	switch {
	case from.n == nil:
		return unix.ENOENT
	case to.n != nil && to.res.Stat.Sealed() && from.n != to.n:
		return unix.EPERM
	case flags&sys.RenameNoReplace != 0 && to.n != nil:
		return unix.EEXIST
	case flags&sys.RenameExchange != 0 && to.n == nil:
		return unix.ENOENT
	case from.n.isDir() && isBelow(to.parent, from.n), flags&sys.RenameExchange != 0 && to.n.isDir() && isBelow(from.parent, to.n):
		return unix.EINVAL
	case to.n == nil || flags&sys.RenameExchange != 0:
		return nil
	case to.n.isDir() && !from.n.isDir():
		return unix.EISDIR
	case !to.n.isDir() && from.n.isDir():
		return unix.ENOTDIR
	}
	return nil
}

// anchor makes a directory that is about to leave its place keep what it
// shows: a redirect to its lower content, or opaqueness where it has none and
// something lower would show through at the new place.
func anchor(on *branches.Branch, s, target *side) error {
	if !s.n.isDir() {
		return nil
	}
	tree := s.n.dir.tree
	if len(tree.Below(on)) > 0 {
		path := tree.LowerPath()
		m, err := whiteout.ReadMarks(s.fd, s.name)
		if err == nil && m.Redirect != path {
			err = on.Format.SetRedirect(s.fd, s.name, path)
		}
		if err == nil {
			tree.SetRedirect(path)
		}
		return err
	}
	if target.covers {
		return on.Format.SetOpaque(s.fd, s.name)
	}
	return nil
}

// lockNodes locks the nodes of both sides in the order of their ids.
func lockNodes(a, b *node) (unlock func()) {
	if b == nil || a == b {
		a.mu.Lock()
		return a.mu.Unlock
	}
	if a.id > b.id {
		a, b = b, a
	}
	a.mu.Lock()
	b.mu.Lock()
	return func() { b.mu.Unlock(); a.mu.Unlock() }
}

// exchange swaps two names, which both exist in the upper afterwards.
func (f *FS) exchange(on *branches.Branch, from, to *side) error {
	if err := anchor(on, from, to); err != nil {
		return err
	}
	if err := anchor(on, to, from); err != nil {
		return err
	}
	unlock := lockNodes(from.n, to.n)
	defer unlock()
	for _, s := range []*side{from, to} {
		if err := f.materializeSide(on, s); err != nil {
			return err
		}
	}
	var a, b *branches.Dir
	if from.n.isDir() {
		a = from.n.dir.tree
	}
	if to.n.isDir() {
		b = to.n.dir.tree
	}
	err := branches.Exchange(f.stack, on, a, from.parent.dir.tree, from.name, b, to.parent.dir.tree, to.name, func() error {
		return sys.Rename(from.fd, from.name, to.fd, to.name, sys.RenameExchange)
	})
	if err != nil {
		return err
	}
	f.movePlaceLocked(on, from.n, from, to)
	f.movePlaceLocked(on, to.n, to, from)
	return nil
}

// materializeSide gives an alias in a lower its own name in the branch on.
func (f *FS) materializeSide(on *branches.Branch, s *side) error {
	if s.res.Home == on {
		return nil
	}
	return f.materializeLocked(s.n, s.parent, s.name)
}

func (f *FS) movePlaceLocked(on *branches.Branch, n *node, from, to *side) {
	f.addPlaceLocked(n, place{to.parent, to.name, on})
	f.removePlaceLocked(n, from.parent, from.name)
}

// replace is a rename that takes a name away and gives another.
func (f *FS) replace(on *branches.Branch, from, to *side) error {
	if to.n != nil && to.n.isDir() {
		to.n.dir.mu.Lock()
		defer to.n.dir.mu.Unlock()
		if empty, err := f.stack.Empty(to.n.dir.tree); err != nil || !empty {
			return f.orNotEmpty(err, to.parent, to.n)
		}
		if err := f.clearVictim(on, to); err != nil {
			return err
		}
		to.n.dir.pinLocked()
	}
	if err := anchor(on, from, to); err != nil {
		return err
	}
	unlock := lockNodes(from.n, to.n)
	defer unlock()
	if err := f.materializeSide(on, from); err != nil {
		return err
	}
	if to.n != nil {
		if err := f.readyReplacedLocked(on, to); err != nil {
			return err
		}
	}
	if err := moveOnDisk(on, from, to); err != nil {
		return err
	}
	if to.n != nil {
		f.unnamedLocked(to.n, to.parent, to.name, &to.res.Stat)
	}
	f.movePlaceLocked(on, from.n, from, to)
	return nil
}

// readyReplacedLocked readies what is at to for the loss of that name.
// Preconditions: to.n.mu is held, to.parent.dir.mu is held for writing.
func (f *FS) readyReplacedLocked(on *branches.Branch, to *side) (err error) {
	inUpper := to.res.Home == on
	if !inUpper {
		if inUpper, err = f.beforeCoverLocked(on, to.n, to.parent, to.name, &to.res.Stat); err != nil {
			return err
		}
	}
	if inUpper && f.lastUpperLocked(to.n) {
		if err := f.beforeLastLocked(to.n); err != nil {
			return err
		}
	}
	return f.ensureThawedLocked(to.n)
}

// clearVictim empties the directory that a rename will replace of whiteouts,
// in such a way that it is an empty directory at every moment (ovl_clear_empty).
func (f *FS) clearVictim(on *branches.Branch, to *side) error {
	if to.res.Home != on {
		return nil
	}
	dir, err := sys.OpenIn(to.fd, to.name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer sys.Close(dir)
	entries, err := sys.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return err
	}
	if on.Format.InPlace() {
		cp := &copied{to: on, tmp: on.Work.Name()}
		tmp := cp.at()
		if err := sys.Mkdir(tmp.fd, tmp.name, 0700); err != nil {
			return err
		}
		defer on.Work.Discard(cp.tmp)
		if err := f.copyAttributes(location{to.fd, to.name, noRelease}, on, tmp, on, &to.res.Stat, nil); err != nil {
			return err
		}
		if err := on.Format.SetOpaque(tmp.fd, tmp.name); err != nil {
			return err
		}
		return sys.Rename(tmp.fd, tmp.name, to.fd, to.name, sys.RenameExchange)
	}
	// A whiteout beside it makes it opaque, then what is in it counts no more.
	if err := hideBeside(on, to); err != nil {
		return err
	}
	for _, e := range entries {
		if err := sys.RemoveAll(dir, e.Name); err != nil {
			return err
		}
	}
	return nil
}

// hideBeside puts an AUFS whiteout beside the name of s.
func hideBeside(on *branches.Branch, s *side) error {
	if err := s.parent.dir.tree.PrepareWhiteout(on, s.fd); err != nil {
		return err
	}
	err := on.Work.LinkWhiteout(on.Format, s.fd, whiteout.Prefix+s.name)
	if err == unix.EEXIST {
		return nil
	}
	return err
}
