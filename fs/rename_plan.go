package fs

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/whiteout"
)

// renaming is a rename under way.
type renaming struct {
	from, to *side
	exchange bool
	on       *branches.Branch // where it is done
}

// readyRename brings what r needs into its branch, before any directory is locked.
func (f *FS) readyRename(r *renaming) error {
	if err := f.readySide(r.on, r.from); err != nil {
		return err
	}
	switch {
	case r.exchange:
		if err := f.readySide(r.on, r.to); err != nil {
			return err
		}
	case r.on.Format.Dialect == whiteout.Xattr:
		if err := f.readyVictim(r.on, r.to); err != nil {
			return err
		}
	}
	return f.copyUpTo(r.to.parent, r.on)
}

// planRename settles where r is done, as far as can be said before the
// directories are locked.
func (f *FS) planRename(r *renaming) (err error) {
	r.on = f.stack.Upper()
	if !f.stack.Several() {
		return nil
	}
	unlock := rlockDirs(r.from.parent, r.to.parent)
	defer unlock()
	for _, s := range []*side{r.from, r.to} {
		if err := f.lookAt(s); err != nil {
			return err
		}
		if s.n != nil {
			defer f.table.forget(s.n.id, 1)
		}
	}
	if r.from.n == nil || r.exchange && r.to.n == nil {
		return unix.ENOENT
	}
	r.on, err = f.branchToRename(r)
	return err
}

// branchToRename returns the branch in which r is done: that where the source is,
// unless something above it covers the new name ("If the rename target exists,
// aufs compares the index of the branches where the source and the target are
// existing and selects the higher one. If the selected branch is readonly, then
// aufs follows the copyup policy"); directories with content in several
// branches in the topmost writable one, whose redirects lead to the others.
// Preconditions: both directories are locked and both sides have been looked at.
func (f *FS) branchToRename(r *renaming) (*branches.Branch, error) {
	if !f.stack.Several() {
		return f.stack.Upper(), nil
	}
	tree := r.from.parent.dir.tree
	low := min(tree.Floor(), r.from.res.Where.Branch.Index, f.lowestAt(r.to))
	on := r.from.inPlace()
	switch {
	case r.exchange:
		if on == nil || on != r.to.inPlace() || on.Index > low {
			on = f.stack.AtOrAbove(f.stack.Upper(), low)
		}
	case r.from.n.isDir():
		if on == nil || on.Index > low {
			on = f.stack.AtOrAbove(f.stack.Upper(), low)
		}
	default:
		if on == nil {
			on = f.stack.ForCopyUp(tree, r.from.res.Where.Branch.Index)
		}
		if on != nil {
			on = f.stack.AtOrAbove(on, low)
		}
	}
	if on == nil {
		return nil, unix.EROFS
	}
	return on, nil
}

// lowestAt is the index of the lowest branch in which s can be given its name.
func (f *FS) lowestAt(s *side) int {
	limit := s.res.Limit
	if s.n != nil {
		limit = s.res.Where.Branch
	}
	return f.stack.Lowest(s.parent.dir.tree, limit)
}

// inPlace returns the branch in which what is at s can be renamed with all that
// it has, nil when there is none.
func (s *side) inPlace() *branches.Branch {
	if !s.n.isDir() {
		return s.n.changeable()
	}
	if s.n.dir.tree.Merged() {
		return nil
	}
	return s.res.Home
}

// readySide brings what is at s into the branch on.
func (f *FS) readySide(on *branches.Branch, s *side) error {
	if err := f.copyUpTo(s.parent, on); err != nil {
		return err
	}
	s.parent.dir.mu.RLock()
	n, _, err := f.lookup(s.parent, s.name)
	s.parent.dir.mu.RUnlock()
	if err != nil {
		return err
	}
	defer f.table.forget(n.id, 1)
	if n.isDir() && len(n.dir.tree.Below(on)) > 0 && !f.opts.RedirectDir {
		return unix.EXDEV
	}
	return f.copyUpTo(n, on)
}

// readyVictim brings a directory that a rename may replace into the branch on:
// moveLeavingXattrWhiteout lets it change places with the one that is moved.
func (f *FS) readyVictim(on *branches.Branch, to *side) error {
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
	return f.copyUpTo(n, on)
}

// lookAt resolves the name of s; n is nil where nothing is to be seen.
// Preconditions: s.parent.dir.mu is held.
func (f *FS) lookAt(s *side) error {
	if s.parent.dir.dead {
		return unix.ENOENT
	}
	var err error
	s.n = nil
	s.res, err = f.find(s.parent, s.name)
	if err == nil {
		s.n, err = f.nodeOf(s.parent, s.name, &s.res)
	}
	if err == unix.ENOENT {
		err = nil
	}
	return err
}
