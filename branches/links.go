package branches

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// A file with several names is one change or none: it is unchanged only when
// the lowers have the very same file under all of its names. Which names it has
// is found out before anything is told.
//
// Names of a copy need not be in an upper: when a lower file was copied up by
// one of its names, the union shows the copy at the others too (internal/records). Then,
// and when a file in a renamed lower directory has names elsewhere, the whole
// merged tree is searched for them.

// links is what a comparison knows about files with several names.
type links struct {
	copies   map[string]*Object // the files in uppers that stand for lower ones, by the keys of those
	groups   map[inode]*group
	affected map[string]bool // paths that only lowers have but that are to be visited: names of such files, and directories on the way
	// survivors counts, for each file of the lowers, at how many of its names there
	// still is a file. It is right only when every name was looked at.
	survivors map[inode]int
	all       bool // that is so
	oneFS     bool // see Comparison
}

// group is the names of one file.
type group struct {
	names int     // found so far
	lower int     // links of a file that lies in a lower
	old   *Object // the file that lowers have at the names, and at how many
	olds  int
	mixed bool   // they have none or another one at some name
	first string // the name that was told first

	judged, same bool
}

// findLinks fills c.links.
func (c *comparison) findLinks() error {
	c.links = links{copies: map[string]*Object{}, groups: map[inode]*group{}, affected: map[string]bool{}, survivors: map[inode]int{}, all: c.whole, oneFS: c.oneFS}
	for _, b := range c.full.branches[:c.uppers] {
		if !marked(b) {
			continue
		}
		if err := c.readRecords(b, "."); err != nil {
			return err
		}
	}
	if err := c.walk(&finder{links: &c.links, uppers: c.uppers}); err != nil {
		return err
	}
	if c.whole || c.low == nil || c.links.complete() {
		return nil
	}
	c.links.all, c.everything = true, true
	defer func() { c.everything = false }()
	return c.walk(&finder{links: &c.links, uppers: c.uppers, rest: true})
}

// marked reports whether b says that files in it have link records.
func marked(b *Branch) bool {
	for _, ns := range []whiteout.Namespace{whiteout.Trusted, whiteout.User} {
		if _, err := sys.GetXattrInto(b.Root, "", string(ns)+records.LinksAttr, nil); err == nil {
			return true
		}
	}
	return false
}

// readRecords notes every file in the directory path of b that carries a link record.
func (c *comparison) readRecords(b *Branch, path string) error {
	d := &Dir{stack: c.full, parts: []*Part{{Branch: b, path: path}}}
	part := d.Parts()[0]
	defer d.Close()
	fd, err := d.Acquire(part)
	if err != nil {
		return err
	}
	entries, err := sys.ReadDirUntouched(fd)
	d.Release(part)
	if err != nil {
		return err
	}
	for _, e := range entries {
		kept := path == "." && e.Name == whiteout.LinkDir // copies that have no name in the upper any more
		switch {
		case whiteout.Reserved(e.Name) && !kept || e.Type == unix.DT_CHR:
		case e.Type == unix.DT_DIR:
			err = c.readRecords(b, join(path, e.Name))
		default:
			err = c.readRecord(d, part, e.Name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) readRecord(d *Dir, p *Part, name string) error {
	o, err := object(d, p, name)
	if err != nil {
		return err
	}
	return o.at(func(fd int) error {
		for _, ns := range []whiteout.Namespace{whiteout.Trusted, whiteout.User} {
			v, err := sys.GetXattr(fd, name, string(ns)+records.LinkAttr)
			if err != nil {
				continue
			}
			if r, ok := records.ParseLink(string(v)); ok {
				if _, known := c.links.copies[r.Key]; !known {
					c.links.copies[r.Key] = o
				}
			}
		}
		return nil
	})
}

// copyOf returns the copy that the union shows in place of the lower file o; nil for none.
func (l *links) copyOf(o *Object, uppers int) (*Object, error) {
	if len(l.copies) == 0 || o.Stat.Nlink < 2 || o.part.Branch.Index < uppers {
		return nil, nil
	}
	key, err := o.key()
	if err != nil || key == "" {
		return nil, err
	}
	return l.copies[key], nil
}

// complete reports whether every name of every file is known: all those of the
// lower file of which a copy is, or which lies in a directory that has moved.
// What the copy's own record says of its links is of no use here: it is right
// beside the index only.
func (l *links) complete() bool {
	for _, o := range l.copies {
		if g := l.groups[o.id()]; g == nil || g.old == nil || g.olds < int(g.old.Stat.Nlink) {
			return false
		}
	}
	for _, g := range l.groups {
		if g.names < g.lower {
			return false
		}
	}
	return true
}

// unchanged reports whether the lowers have the file of p as it is, under all its names.
func (l *links) unchanged(p *pair) (bool, error) {
	if p.old == nil {
		return false, nil
	}
	g := l.groups[p.new.id()]
	if g == nil {
		g = &group{names: 1}
	}
	if g.judged {
		return g.same, nil
	}
	g.judged = true
	if g.mixed || !p.old.Stat.IsDir() && g.names != l.expected(p.old) {
		return false, nil
	}
	var err error
	g.same, err = same(p.new, p.old, l.oneFS)
	return g.same, err
}

// expected is how many names the file old has that can still be its: a name that is
// deleted or replaced is told as such and changes nothing of the others.
func (l *links) expected(old *Object) int {
	if l.all && old.Stat.Nlink > 1 {
		return l.survivors[old.id()]
	}
	return int(old.Stat.Nlink)
}

// earlier returns the name of p's file that was told before, "" for none; from
// now on it is that of p.
func (l *links) earlier(p *pair) string {
	g := l.groups[p.new.id()]
	if g == nil {
		return ""
	}
	if g.first == "" {
		g.first = p.path
		return ""
	}
	return g.first
}

// finder is the visitor that collects the names of files.
type finder struct {
	links  *links
	uppers int
	rest   bool // only the names that lowers alone have are still to be found
}

func (f *finder) enter(*pair, bool) error { return nil }
func (f *finder) leave(*pair)             {}
func (f *finder) deleted(string) error    { return nil }

func (f *finder) file(p *pair) error {
	several := p.new.Stat.Nlink > 1 || p.old != nil && p.old.Stat.Nlink > 1
	if !several || f.rest && !p.same {
		return nil
	}
	if p.old != nil && !p.old.Stat.IsDir() {
		f.links.survivors[p.old.id()]++
	}
	id := p.new.id()
	g := f.links.groups[id]
	lower := p.new.part.Branch.Index >= f.uppers
	if f.rest {
		if lower && (g == nil || g.lower == 0) {
			return nil // none of its names changes; or it is an upper's file, seen where a lower contains the upper
		}
		for path := p.path; path != ""; path = path[:strings.LastIndexByte(path, '/')] {
			f.links.affected[path] = true
		}
	}
	if g == nil {
		g = &group{}
		f.links.groups[id] = g
	}
	if lower {
		g.lower = int(p.new.Stat.Nlink)
	}
	g.names++
	switch {
	case p.old == nil || p.old.Stat.IsDir():
		g.mixed = true
	case g.old == nil:
		g.old, g.olds = p.old, 1
	case g.old.id() == p.old.id():
		g.olds++
	default:
		g.mixed = true
	}
	return nil
}
