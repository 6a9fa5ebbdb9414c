package branches

import (
	"sort"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// Changes tells what the directory upper changes in the stack of lowers, top
// first: emit gets 'A' (added), 'C' (changed) or 'D' (deleted) and a path that
// starts with "/", parents before children and names in order, as `docker
// diff` has it. Only directories that are in the upper are read.
func Changes(upper string, lowers []string, emit func(kind byte, path string) error) error {
	specs := []Spec{{Path: upper, Mode: RO}}
	for _, l := range lowers {
		specs = append(specs, Spec{Path: l, Mode: RO})
	}
	full, err := Open(Config{Branches: specs, ReadOnly: true})
	if err != nil {
		return err
	}
	defer full.Close()
	c := changes{full: full, top: full.branches[0], emit: emit}
	if len(lowers) == 0 {
		return c.dir(full.root, nil, "")
	}
	if c.low, err = Open(Config{Branches: specs[1:], ReadOnly: true}); err != nil {
		return err
	}
	defer c.low.Close()
	return c.dir(full.root, c.low.root, "")
}

type changes struct {
	full, low *Stack
	top       *Branch // the upper, in full
	emit      func(byte, string) error
}

// dir compares one directory; low is nil where the lowers have none.
func (c *changes) dir(d, low *Dir, path string) error {
	was, err := c.names(c.low, low)
	if err != nil {
		return err
	}
	is, err := c.names(c.full, d)
	if err != nil {
		return err
	}
	all := make([]string, 0, len(is))
	for name := range is {
		all = append(all, name)
	}
	for name := range was {
		if !is[name] {
			all = append(all, name)
		}
	}
	sort.Strings(all)
	for _, name := range all {
		if !is[name] {
			err = c.emit('D', path+"/"+name)
		} else {
			err = c.entry(d, low, name, path+"/"+name, was[name])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *changes) names(s *Stack, d *Dir) (map[string]bool, error) {
	if d == nil {
		return nil, nil
	}
	entries, err := s.List(d)
	out := make(map[string]bool, len(entries))
	for _, e := range entries {
		out[e.Name] = true
	}
	return out, err
}

func (c *changes) entry(d, low *Dir, name, path string, existed bool) error {
	res, err := c.full.Lookup(d, name)
	if err != nil || res.Kind == NotFound {
		return err
	}
	if !existed {
		if err := c.emit('A', path); err != nil || res.Kind != Directory {
			return err
		}
		return c.dir(res.Dir, nil, path)
	}
	if res.Where.Branch != c.top {
		return nil
	}
	old, err := c.low.Lookup(low, name)
	if err != nil {
		return err
	}
	if res.Kind != Directory {
		return c.emit('C', path)
	}
	if old.Kind != Directory {
		if err := c.emit('C', path); err != nil {
			return err
		}
		return c.dir(res.Dir, nil, path)
	}
	return c.changedDir(&res, &old, path)
}

// changedDir reports a directory that both have only when something about it
// or in it differs: the upper has many merely because something deeper changed.
func (c *changes) changedDir(res, old *Resolution, path string) error {
	type line struct {
		kind byte
		path string
	}
	var below []line
	emit := c.emit
	c.emit = func(kind byte, p string) error {
		below = append(below, line{kind, p})
		return nil
	}
	err := c.dir(res.Dir, old.Dir, path)
	c.emit = emit
	if err != nil {
		return err
	}
	if len(below) == 0 && sameDir(&res.Stat, &old.Stat) {
		return nil
	}
	if err := emit('C', path); err != nil {
		return err
	}
	for _, l := range below {
		if err := emit(l.kind, l.path); err != nil {
			return err
		}
	}
	return nil
}

func sameDir(a, b *sys.Stat) bool {
	return a.Mode&^unix.S_IFMT == b.Mode&^unix.S_IFMT && a.UID == b.UID && a.GID == b.GID && a.Mtime == b.Mtime
}
