package fs

import (
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
	covers bool                // a lower shows something at this name
	fd     int                 // the upper part of parent
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
	if err := f.readySide(from); err != nil {
		return err
	}
	switch {
	case flags&sys.RenameExchange != 0:
		if err := f.readySide(to); err != nil {
			return err
		}
	case f.format.Dialect == whiteout.Xattr:
		if err := f.readyVictim(to); err != nil {
			return err
		}
	}
	if err := f.copyUp(to.parent); err != nil {
		return err
	}
	unlock := f.lockDirs(from.parent, to.parent)
	defer unlock()
	defer f.releaseSide(from)
	defer f.releaseSide(to)
	for _, s := range []*side{from, to} {
		if err := f.resolveSide(s); err != nil {
			return err
		}
	}
	if err := f.checkRename(from, to, flags); err != nil || from.n == to.n {
		return err
	}
	if flags&sys.RenameExchange != 0 {
		return f.exchange(from, to)
	}
	return f.replace(from, to, flags)
}

// readySide brings what is at s into the upper, before any directory is locked.
func (f *FS) readySide(s *side) error {
	if err := f.copyUp(s.parent); err != nil {
		return err
	}
	s.parent.dir.mu.RLock()
	n, _, err := f.lookup(s.parent, s.name)
	s.parent.dir.mu.RUnlock()
	if err != nil {
		return err
	}
	defer f.table.forget(n.id, 1)
	if n.isDir() && len(n.dir.tree.Lowers()) > 0 && !f.opts.RedirectDir {
		return unix.EXDEV
	}
	return f.copyUp(n)
}

// readyVictim brings a directory that a rename may replace into the upper:
// moveLeavingXattrWhiteout lets it change places with the one that is moved.
func (f *FS) readyVictim(to *side) error {
	to.parent.dir.mu.RLock()
	n, _, err := f.lookup(to.parent, to.name)
	to.parent.dir.mu.RUnlock()
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.table.forget(n.id, 1)
	if !n.isDir() {
		return nil
	}
	return f.copyUp(n)
}

// lockDirs locks the directories of a rename: an ancestor first, else in the
// order of their ids.
func (f *FS) lockDirs(a, b *node) (unlock func()) {
	if a == b {
		a.dir.mu.Lock()
		return a.dir.mu.Unlock
	}
	if isBelow(a, b) || !isBelow(b, a) && a.id > b.id {
		a, b = b, a
	}
	a.dir.mu.Lock()
	b.dir.mu.Lock()
	return func() { b.dir.mu.Unlock(); a.dir.mu.Unlock() }
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

func (f *FS) resolveSide(s *side) error {
	if s.parent.dir.dead {
		return unix.ENOENT
	}
	var err error
	if s.fd, err = s.parent.dir.tree.Acquire(s.parent.dir.tree.Upper()); err != nil {
		return err
	}
	// The directory lock keeps the part in use; a pin would outlive early returns.
	s.res, err = f.find(s.parent, s.name)
	if err == nil {
		s.n, err = f.nodeOf(s.parent, s.name, &s.res)
	}
	if err != nil && err != unix.ENOENT {
		return err
	}
	if s.parent.dir.tree.Merged() {
		s.covers, err = f.stack.LowerHas(s.parent.dir.tree, s.name)
		return err
	}
	return nil
}

func (f *FS) releaseSide(s *side) {
	if s.n != nil {
		f.table.forget(s.n.id, 1)
	}
	if s.fd > 0 {
		s.parent.dir.tree.Release(s.parent.dir.tree.Upper())
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
func (f *FS) anchor(s, target *side) error {
	if !s.n.isDir() {
		return nil
	}
	tree := s.n.dir.tree
	if path := tree.LowerPath(); path != "" {
		if m, err := whiteout.ReadMarks(s.fd, s.name); err != nil || m.Redirect == path {
			return err
		}
		return f.format.SetRedirect(s.fd, s.name, path)
	}
	if target.covers {
		return f.format.SetOpaque(s.fd, s.name)
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
func (f *FS) exchange(from, to *side) error {
	if err := f.anchor(from, to); err != nil {
		return err
	}
	if err := f.anchor(to, from); err != nil {
		return err
	}
	unlock := lockNodes(from.n, to.n)
	defer unlock()
	for _, s := range []*side{from, to} {
		if err := f.materializeSide(s); err != nil {
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
	err := branches.Exchange(f.stack, a, from.parent.dir.tree, from.name, b, to.parent.dir.tree, to.name, func() error {
		return sys.Rename(from.fd, from.name, to.fd, to.name, sys.RenameExchange)
	})
	if err != nil {
		return err
	}
	f.movePlaceLocked(from.n, from, to)
	f.movePlaceLocked(to.n, to, from)
	return nil
}

// materializeSide gives an alias in a lower its own name in the upper.
func (f *FS) materializeSide(s *side) error {
	if s.res.InUpper() {
		return nil
	}
	return f.materializeLocked(s.n, s.parent, s.name)
}

func (f *FS) movePlaceLocked(n *node, from, to *side) {
	f.addPlaceLocked(n, place{to.parent, to.name, true})
	f.removePlaceLocked(n, from.parent, from.name)
}

// replace is a rename that takes a name away and gives another.
func (f *FS) replace(from, to *side, flags uint32) error {
	if to.n != nil && to.n.isDir() {
		to.n.dir.mu.Lock()
		defer to.n.dir.mu.Unlock()
		if empty, err := f.stack.Empty(to.n.dir.tree); err != nil || !empty {
			return f.orNotEmpty(err, to.parent, to.n)
		}
		if err := f.clearVictim(to); err != nil {
			return err
		}
		to.n.dir.pinLocked()
	}
	if err := f.anchor(from, to); err != nil {
		return err
	}
	unlock := lockNodes(from.n, to.n)
	defer unlock()
	if err := f.materializeSide(from); err != nil {
		return err
	}
	if to.n != nil {
		if err := f.readyReplacedLocked(to); err != nil {
			return err
		}
	}
	if err := f.moveOnDisk(from, to); err != nil {
		return err
	}
	if to.n != nil {
		f.unnamedLocked(to.n, to.parent, to.name, &to.res.Stat)
	}
	f.movePlaceLocked(from.n, from, to)
	return nil
}

// readyReplacedLocked readies what is at to for the loss of that name.
// Preconditions: to.n.mu is held, to.parent.dir.mu is held for writing.
func (f *FS) readyReplacedLocked(to *side) (err error) {
	inUpper := to.res.InUpper()
	if !inUpper {
		if inUpper, err = f.beforeCoverLocked(to.n, to.parent, to.name, &to.res.Stat); err != nil {
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
func (f *FS) clearVictim(to *side) error {
	if !to.res.InUpper() {
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
	if f.format.InPlace() {
		tmp := f.work.Name()
		if err := sys.Mkdir(f.work.Tmp, tmp, 0700); err != nil {
			return err
		}
		defer f.work.Discard(tmp)
		if err := f.copyAttributes(location{to.fd, to.name, noRelease}, location{f.work.Tmp, tmp, noRelease}, &to.res.Stat, f.stack.Upper(), nil); err != nil {
			return err
		}
		if err := f.format.SetOpaque(f.work.Tmp, tmp); err != nil {
			return err
		}
		return sys.Rename(f.work.Tmp, tmp, to.fd, to.name, sys.RenameExchange)
	}
	// A whiteout beside it makes it opaque, then what is in it counts no more.
	if err := f.hideBeside(to); err != nil {
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
func (f *FS) hideBeside(s *side) error {
	if err := f.stack.PrepareWhiteout(s.parent.dir.tree, s.fd); err != nil {
		return err
	}
	err := f.work.LinkWhiteout(f.format, s.fd, whiteout.Prefix+s.name)
	if err == unix.EEXIST {
		return nil
	}
	return err
}
