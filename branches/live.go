package branches

import (
	"path/filepath"
	"slices"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// Change is one change of the branches of an open stack, as AUFS's remount
// options have them.
type Change struct {
	Op    ChangeOp `json:"op"`
	Index int      `json:"index"` // Add: of the new branch; what is too large means behind the last
	Spec  Spec     `json:"spec"`  // Del: only which directory
}

// ChangeOp is what a Change does.
type ChangeOp string

const (
	Add ChangeOp = "add"
	Del ChangeOp = "del"
	Mod ChangeOp = "mod" // another mode, other attributes
)

// MaxBranches bounds a stack (AUFS's largest build has more, nobody uses them).
const MaxBranches = 4096

// Plan is a stack after changes that are not in force yet.
type Plan struct {
	stack    *Stack
	branches []*Branch           // in their new order
	specs    map[*Branch]Spec    // new modes of old branches
	opened   map[*Branch]*Branch // what such a branch will be changed as (Work, Format); a scratch copy
	added    []*Branch
	idle     []*Work // of branches that are no longer writable, from Commit on
	Removed  []*Branch
}

// Plan prepares changes, which are made from left to right. It opens what is to
// be added and checks all that can be checked before; nothing has changed yet.
// Commit or Abort must be called in the end, before another Plan.
func (s *Stack) Plan(changes []Change) (*Plan, error) {
	p := &Plan{stack: s, branches: slices.Clone(s.branches), specs: map[*Branch]Spec{}, opened: map[*Branch]*Branch{}}
	for _, c := range changes {
		if err := p.change(c); err != nil {
			p.Abort()
			return nil, err
		}
	}
	if err := p.ready(); err != nil {
		p.Abort()
		return nil, err
	}
	return p, nil
}

func (p *Plan) change(c Change) error {
	switch c.Op {
	case Add:
		return p.add(c)
	case Del:
		i, err := p.find(c.Spec)
		if err != nil {
			return err
		}
		b := p.branches[i]
		p.branches = slices.Delete(p.branches, i, i+1)
		delete(p.specs, b)
		if j := slices.Index(p.added, b); j >= 0 { // added a moment ago
			p.added = slices.Delete(p.added, j, j+1)
			return b.close()
		}
		p.Removed = append(p.Removed, b)
		return nil
	case Mod:
		i, err := p.find(c.Spec)
		if err != nil {
			return err
		}
		if b := p.branches[i]; slices.Contains(p.added, b) {
			b.setMode(c.Spec, p.stack.config)
		} else {
			p.specs[b] = c.Spec
		}
		return nil
	}
	return errs.New(errs.Usage, "change %q is unknown: use add, del or mod", c.Op)
}

func (p *Plan) add(c Change) error {
	if _, err := p.find(c.Spec); err == nil {
		return errs.New(errs.Usage, "%s is a branch already", c.Spec.Path)
	}
	if len(p.branches) >= MaxBranches {
		return errs.New(errs.Usage, "%s: there are %d branches already", c.Spec.Path, len(p.branches))
	}
	b, err := openBranch(0, c.Spec, p.stack.config, readMounts())
	if err != nil {
		return err
	}
	p.added = append(p.added, b)
	p.branches = slices.Insert(p.branches, max(0, min(c.Index, len(p.branches))), b)
	return nil
}

// find returns the position of the branch that spec names: by the directory
// itself, or by its path where that cannot be opened any more.
func (p *Plan) find(spec Spec) (int, error) {
	var want sys.Stat
	known := false
	if spec.Fd > 0 {
		st, err := sys.StatAt(spec.Fd, "", sys.DontSync)
		want, known = st, err == nil
	}
	for i, b := range p.branches {
		if known {
			if st, err := b.RootStat(); err == nil && st.Ino == want.Ino && st.Dev == want.Dev {
				return i, nil
			}
		} else if b.Path == filepath.Clean(spec.Path) {
			return i, nil
		}
	}
	return 0, errs.New(errs.NotFound, "%s is not a branch of this mount", spec.Path)
}

// mode is the mode that b is to have.
func (p *Plan) mode(b *Branch) Mode {
	if spec, ok := p.specs[b]; ok {
		return spec.Mode
	}
	return b.Mode
}

// ready checks the new stack as a whole and takes what will be writable.
func (p *Plan) ready() error {
	if len(p.branches) == 0 {
		return errs.New(errs.Usage, "the last branch of a mount cannot be removed: unmount it")
	}
	look := &Stack{}
	for i, b := range p.branches {
		look.branches = append(look.branches, &Branch{Index: i, Path: b.Path, Mode: p.mode(b)})
	}
	cfg := p.stack.config
	cfg.WorkDir = "" // has been checked, and belongs to one branch alone
	if err := look.checkOverlaps(cfg); err != nil {
		return err
	}
	if cfg.ReadOnly {
		return nil
	}
	cfg.AufsStyle = true // the work directory is inside
	for _, b := range p.branches {
		if p.mode(b) != RW || b.Writable() {
			continue
		}
		scratch := &Branch{Path: b.Path, Root: b.Root, Dev: b.Dev, Mode: RW, Attr: b.Attr}
		if spec, ok := p.specs[b]; ok {
			scratch.Attr = parseAttr(spec.Attr)
		}
		if err := scratch.openUpper(cfg); err != nil {
			return err
		}
		p.opened[b] = scratch
	}
	return nil
}

// Demoted returns the branches that will no longer be writable.
func (p *Plan) Demoted() []*Branch {
	var out []*Branch
	for b := range p.specs {
		if b.Writable() && p.mode(b) != RW {
			out = append(out, b)
		}
	}
	return out
}

// Promoted returns the branches that will be writable from now on, and what
// each can be used as until then.
func (p *Plan) Promoted() map[*Branch]*Branch { return p.opened }

// Concerned reports whether b is added, removed or changed.
func (p *Plan) Concerned(b *Branch) bool {
	_, mod := p.specs[b]
	return mod || slices.Contains(p.added, b) || slices.Contains(p.Removed, b)
}

// Abort gives back what was opened.
func (p *Plan) Abort() {
	for _, scratch := range p.opened {
		_ = scratch.Work.close()
	}
	for _, b := range p.added {
		sys.Close(b.Root)
	}
}

// Commit puts the plan into force. Nobody else may use the stack meanwhile,
// and every Dir has to be refreshed (Refresh) before it is used again. Removed
// branches stay open until Drop.
func (p *Plan) Commit() {
	s := p.stack
	for b, spec := range p.specs {
		b.setMode(spec, s.config)
		if b.Work != nil && b.Mode != RW {
			p.idle = append(p.idle, b.Work)
			b.Work = nil
		} else if b.Work != nil {
			b.Work.lone = b.Attr.LoneMarks
		}
	}
	for b, scratch := range p.opened {
		b.Work, b.Format = scratch.Work, scratch.Format
	}
	for _, b := range p.added {
		b.ID = s.nextID
		s.nextID++
	}
	s.branches, s.writable = p.branches, nil
	for i, b := range s.branches {
		b.Index = i
		if b.Writable() {
			s.writable = append(s.writable, b)
		}
	}
	s.hideOwn()
	s.chooser.free = nil
}

// Drop gives back what was removed or is no longer writable. It is called
// after Commit, when every Dir has been refreshed, before the stack is used again.
func (p *Plan) Drop() error {
	var first error
	keep := func(err error) {
		if first == nil {
			first = err
		}
	}
	for _, w := range p.idle {
		keep(w.close())
	}
	for _, b := range p.Removed {
		keep(b.close())
		b.Root, b.Work = -1, nil // a number that comes again must not be taken for it
	}
	return first
}

// RefreshRoot brings the root directory up to date after a Commit.
func (s *Stack) RefreshRoot() error {
	parts, floor, err := s.rootParts()
	if err != nil {
		return err
	}
	s.root.Refresh(&Dir{parts: parts, floor: floor})
	return nil
}

// Refresh makes d what a new lookup has found at its place, keeping the
// descriptors of parts that it had already. It returns the parts that came and
// those that went.
func (d *Dir) Refresh(now *Dir) (came, went []*Part) {
	d.mu.Lock()
	defer d.mu.Unlock()
	parts := slices.Clone(now.parts)
	for i, p := range parts {
		if old := samePart(d.parts, p); old != nil {
			old.xattrWhiteouts.Store(p.xattrWhiteouts.Load())
			parts[i] = old
		} else {
			came = append(came, p)
		}
	}
	for _, p := range d.parts {
		if samePart(parts, p) == nil {
			went = append(went, p)
		}
	}
	d.parts, d.floor, d.redirect, d.redirected = parts, now.floor, now.redirect, now.redirected
	return came, went
}

func samePart(parts []*Part, p *Part) *Part {
	for _, q := range parts {
		if q.Branch == p.Branch && q.path == p.path {
			return q
		}
	}
	return nil
}

// Redirected reports whether a redirect says where some of d's parts are.
func (d *Dir) Redirected() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.redirected || d.redirect != ""
}

// Lose makes d a directory of no branch: what it was is no longer there.
func (d *Dir) Lose() {
	d.Close()
	d.mu.Lock()
	d.parts = nil
	d.mu.Unlock()
}

// CloseParts gives up the descriptors of parts that d has lost.
func (s *Stack) CloseParts(parts []*Part) {
	for _, p := range parts {
		s.fds.Drop(&p.slot)
	}
}

// RawNames lists the names in p, a part of d, whiteouts under the name that they hide.
func (s *Stack) RawNames(d *Dir, p *Part) ([]string, error) {
	fd, err := d.Acquire(p)
	if err != nil {
		return nil, err
	}
	defer d.Release(p)
	entries, err := sys.ReadDirUntouched(fd)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if name := HiddenBy(e.Name); name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}
