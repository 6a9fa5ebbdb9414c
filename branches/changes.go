package branches

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/whiteout"
)

// Comparison tells what some branches change in the union of those below
// them: what a comparison of the two merged trees, name by name, would tell.
// Only directories that are in an upper are read, unless files with several
// names make it necessary (links.go).
type Comparison struct {
	Uppers []string // top first
	// Lowers may be left out; then what the uppers record as deleted is taken
	// at its word.
	Lowers []string
	// Whole: the uppers are all of the new tree and the lowers all of the old
	// one, of which nothing shows through.
	Whole bool
	// OneFS: both lie on one file system, where equal files may share their blocks.
	OneFS        bool
	DeletedFirst bool // in each directory; else names are in order
	// Stubs is how the content of files that were copied up by blocks is found;
	// without it they are an error.
	Stubs *Stubs
}

// Kinds of changes, as `docker diff` has them.
const (
	Added   = 'A'
	Changed = 'C'
	Deleted = 'D'
)

// Difference is one name that is not the same in both trees. An entry that is
// the same in everything (type, mode, owner, time, extended attributes, content,
// names) is none, except for a directory in which something changes.
type Difference struct {
	Kind   byte
	Path   string  // in the merged tree, whose root is "/"
	Object *Object // nil when it is deleted
	Link   string  // an earlier path of the same file; "" for none
	// Emptied: a directory below the root that the lowers have too, and all that
	// they have in it, more than one name, is gone: one opaque mark can say so.
	Emptied bool
}

// Run calls emit for every change, parents before what is in them.
func (cmp Comparison) Run(emit func(*Difference) error) error {
	c := comparison{uppers: len(cmp.Uppers), whole: cmp.Whole, oneFS: cmp.OneFS, deletedFirst: cmp.DeletedFirst}
	full := cmp.Uppers
	if !cmp.Whole {
		full = slices.Concat(cmp.Uppers, cmp.Lowers)
	}
	var err error
	if c.full, err = openAll(full, len(cmp.Uppers), cmp.Stubs); err != nil {
		return err
	}
	defer c.full.Close()
	if len(cmp.Lowers) > 0 {
		if c.low, err = openAll(cmp.Lowers, 0, cmp.Stubs); err != nil {
			return err
		}
		defer c.low.Close()
	}
	if err := c.findLinks(); err != nil {
		return err
	}
	return c.walk(&reporter{links: &c.links, emit: emit})
}

func openAll(dirs []string, uppers int, stubs *Stubs) (*Stack, error) {
	cfg := Config{ReadOnly: true, Uppers: uppers, Stubs: stubs}
	for _, d := range dirs {
		cfg.Branches = append(cfg.Branches, Spec{Path: d, Mode: RO})
	}
	return Open(cfg)
}

// comparison is the walk over two stacks, the second of which is the first
// without its uppers, or another one altogether.
type comparison struct {
	full, low    *Stack // low is nil when there are no lowers
	uppers       int
	whole        bool // nothing of low shows in full
	oneFS        bool
	deletedFirst bool
	links        links
	everything   bool // visit also what both stacks have from the same place
}

// pair is one name as both stacks have it.
type pair struct {
	path     string
	new, old *Object // old is nil when the lowers have none
	dir, low *Dir    // of a directory; low is nil when the lowers have none
	same     bool    // both stacks have it from the same place
}

// visitor is told what the walk finds.
type visitor interface {
	enter(p *pair, emptied bool) error // a directory
	leave(p *pair)
	file(p *pair) error
	deleted(path string) error
}

func (c *comparison) walk(v visitor) error {
	root := &pair{path: "/", dir: c.full.root}
	var err error
	if root.new, err = object(root.dir, root.dir.Parts()[0], ""); err != nil {
		return err
	}
	if c.low != nil {
		root.low = c.low.root
		if root.old, err = object(root.low, root.low.Parts()[0], ""); err != nil {
			return err
		}
	}
	return c.directory(root, v)
}

// content is what the two stacks have in one directory.
type content struct {
	is, was map[string]Entry
	gone    map[string]bool
	emptied bool
	below   bool // the parts in lowers are the same in both
}

func (c *comparison) directory(p *pair, v visitor) error {
	in, err := c.read(p)
	if err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	if err := v.enter(p, in.emptied); err != nil {
		return err
	}
	for _, name := range c.order(in) {
		path := below(p.path, name)
		if in.gone[name] {
			err = v.deleted(path)
		} else {
			err = c.entry(p, in, name, path, v)
		}
		if err != nil {
			return err
		}
	}
	p.dir.Close()
	v.leave(p)
	return nil
}

func (c *comparison) read(p *pair) (in content, err error) {
	if in.is, err = listed(c.full, p.dir); err != nil {
		return in, err
	}
	if c.low == nil {
		in.gone, in.emptied, err = recorded(p.dir, in.is)
		return in, err
	}
	in.gone = map[string]bool{}
	if p.low == nil {
		return in, nil
	}
	if in.was, err = listed(c.low, p.low); err != nil {
		return in, err
	}
	for name := range in.was {
		if _, ok := in.is[name]; !ok {
			in.gone[name] = true
		}
	}
	// Not the root: kernel overlay knows no opaque one.
	in.emptied = p.path != "/" && len(in.gone) > 1 && len(in.gone) == len(in.was)
	in.below = c.sameParts(p.dir, p.low)
	return in, nil
}

func listed(s *Stack, d *Dir) (map[string]Entry, error) {
	entries, err := s.List(d)
	out := make(map[string]Entry, len(entries))
	for _, e := range entries {
		out[e.Name] = e
	}
	return out, err
}

// recorded returns what the parts of d say is deleted below them.
func recorded(d *Dir, is map[string]Entry) (gone map[string]bool, opaque bool, err error) {
	gone = map[string]bool{}
	for _, p := range d.Parts() {
		fd, err := d.Acquire(p)
		if err != nil {
			return nil, false, err
		}
		m, err := whiteout.ReadMarks(fd, ".")
		var names []string
		if err == nil {
			names, err = whiteout.Deleted(fd, m)
		}
		d.Release(p)
		switch {
		case err != nil:
			return nil, false, err
		case m.Redirect != "":
			return nil, false, errs.New(errs.Usage, "continues the content that lowers have at %q: say which they are, with --lower", m.Redirect)
		}
		opaque = opaque || m.Opaque
		for _, name := range names {
			if _, ok := is[name]; !ok {
				gone[name] = true
			}
		}
	}
	return gone, opaque, nil
}

// order returns the names of a directory in the order in which they are told.
func (c *comparison) order(in content) []string {
	names := make([]string, 0, len(in.is)+len(in.gone))
	for name := range in.is {
		names = append(names, name)
	}
	if !c.deletedFirst {
		for name := range in.gone {
			names = append(names, name)
		}
		slices.Sort(names)
		return names
	}
	slices.Sort(names)
	gone := make([]string, 0, len(in.gone))
	for name := range in.gone {
		gone = append(gone, name)
	}
	slices.Sort(gone)
	return append(gone, names...)
}

// entry visits a name that is there.
func (c *comparison) entry(p *pair, in content, name, path string, v visitor) error {
	is := in.is[name]
	was, existed := in.was[name]
	plain := in.below && is.Part.Branch.Index >= c.uppers // no upper has it, and the lowers are the same
	if plain && !c.everything && !c.links.affected[path] {
		return nil
	}
	child := &pair{path: path, same: plain}
	var err error
	if existed {
		if child.old, child.low, err = find(c.low, p.low, was); err != nil {
			return fmt.Errorf("%s in the lowers: %w", path, err)
		}
	}
	if child.new, child.dir, err = find(c.full, p.dir, is); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if child.new == nil || existed && child.old == nil {
		return errs.New(errs.Failed, "%s vanished while it was being compared: repeat it when nobody makes changes", path)
	}
	if child.dir == nil {
		return c.file(child, v)
	}
	return c.directory(child, v)
}

func (c *comparison) file(p *pair, v visitor) error {
	copied, err := c.links.copyOf(p.new, c.uppers)
	if err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	if copied != nil {
		p.new = copied
		if err := copied.showAt(p.path); err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
	} else if p.same && !c.everything && !c.links.affected[p.path] {
		return nil
	}
	return v.file(p)
}

// find returns what a listed entry is; nil when it is gone since.
func find(s *Stack, d *Dir, e Entry) (*Object, *Dir, error) {
	if e.Type != unix.DT_DIR {
		o, err := object(d, e.Part, e.Name)
		if err == unix.ENOENT {
			return nil, nil, nil
		}
		if err == nil {
			err = o.showAt(below(d.Path(), e.Name))
		}
		return o, nil, err
	}
	res, err := s.Lookup(d, e.Name)
	if err != nil || res.Kind != Directory {
		return nil, nil, err
	}
	o, err := object(d, res.Where, e.Name)
	return o, res.Dir, err
}

// sameParts reports whether the parts that d of the full stack has in lowers
// are the parts of low.
func (c *comparison) sameParts(d, low *Dir) bool {
	parts := d.Parts()
	for len(parts) > 0 && parts[0].Branch.Index < c.uppers {
		parts = parts[1:]
	}
	return slices.EqualFunc(parts, low.Parts(), func(p, q *Part) bool {
		return p.Branch.Index-c.uppers == q.Branch.Index && p.Path(d) == q.Path(low)
	})
}

// reporter turns what the walk finds into changes.
type reporter struct {
	links *links
	emit  func(*Difference) error
	// pending are the directories on the way that did not change themselves:
	// they are told when something in them has.
	pending []*Difference
}

func (r *reporter) enter(p *pair, emptied bool) error {
	c := change(p)
	c.Emptied = emptied
	if p.old != nil && p.low != nil {
		equal, err := same(p.new, p.old, false)
		if err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
		if equal {
			r.pending = append(r.pending, c)
			return nil
		}
	}
	return r.tell(c)
}

func (r *reporter) leave(p *pair) {
	if last := len(r.pending) - 1; last >= 0 && r.pending[last].Path == p.path {
		r.pending = r.pending[:last]
	}
}

func (r *reporter) deleted(path string) error { return r.tell(&Difference{Kind: Deleted, Path: path}) }

func (r *reporter) file(p *pair) error {
	unchanged, err := r.links.unchanged(p)
	if err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	if unchanged {
		return nil
	}
	c := change(p)
	c.Link = r.links.earlier(p)
	return r.tell(c)
}

func (r *reporter) tell(c *Difference) error {
	for _, p := range r.pending {
		if err := r.emit(p); err != nil {
			return err
		}
	}
	r.pending = r.pending[:0]
	return r.emit(c)
}

func change(p *pair) *Difference {
	c := &Difference{Kind: Added, Path: p.path, Object: p.new}
	if p.old != nil {
		c.Kind = Changed
	}
	return c
}
