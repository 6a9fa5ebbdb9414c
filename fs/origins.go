package fs

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
)

// keepOrigins refuses a plan that takes away the branch of which stubs of the
// others show the rest. Preconditions: the gate is shut.
func (f *FS) keepOrigins(plan *branches.Plan) error {
	if len(plan.Removed) == 0 || f.opts.Pools == nil {
		return nil
	}
	for _, b := range f.stack.Branches() {
		if b.Stubs.Load() && !slices.Contains(plan.Removed, b) {
			if err := f.keepOriginsOf(b, plan); err != nil {
				return err
			}
		}
	}
	return nil
}

// errFound ends a walk.
var errFound = errors.New("found")

// keepOriginsOf is keepOrigins for the stubs in b.
func (f *FS) keepOriginsOf(b *branches.Branch, plan *branches.Plan) error {
	losing := f.losing(b, plan)
	if len(losing) == 0 {
		return nil
	}
	// A device says which lower file it needs, not where its stub is nor whether
	// there is one still.
	var refused error
	err := walkFiles(b.Root, ".", "", func(dirfd int, name, p string) error {
		st := sys.Stat{}
		st.Mode = unix.S_IFREG
		rec, ok, err := b.StubAt(dirfd, name, &st)
		if at := losing[rec.Key]; ok && err == nil && at != nil {
			refused = errs.New(errs.Busy, "branch %s is in use: %s, which is in blocks in %s, shows what it has (layerfs settle makes a plain file of it)",
				at.Path, p, b.Path)
			return errFound
		}
		return nil
	})
	switch {
	case refused != nil:
		return refused
	case err != nil:
		return err
	}
	open := f.nodesIn(func(n *node) bool { return n.back != nil && n.back.stub != nil && losing[n.back.stub.key()] != nil })
	if len(open) > 0 {
		return errs.New(errs.Busy, "branch %s is in use: a removed file that is open shows what it has", plan.Removed[0].Path)
	}
	return nil
}

// losing returns, by the keys of their stubs, which devices of files in b would
// not find their lower file, and the branch that has it.
func (f *FS) losing(b *branches.Branch, plan *branches.Plan) map[string]*branches.Branch {
	var list []*pool
	if hasPrivatePool(b) {
		list = append(list, f.files.pools.privateOf(b))
	}
	if f.opts.Pools.HasShared() {
		list = append(list, f.files.pools.sharedPool())
	}
	out := map[string]*branches.Branch{}
	for _, p := range list {
		err := p.with(func(s stub.Store) error {
			devices, err := s.Devices()
			for _, d := range devices {
				if o := d.Origin; o != nil && o.Valid > 0 {
					if at := plan.Loses(b, o); at != nil {
						out[d.Key] = at
					}
				}
			}
			return err
		})
		if err != nil { // nobody can read its stubs as it is
			f.trouble("pool %s: %v", p.name, err)
		}
	}
	return out
}

// key is that of the stub's record.
func (s *stubFile) key() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec.Key
}
