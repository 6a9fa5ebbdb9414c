package check

import (
	"fmt"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches/convert"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// linkState is what is known of records of hard links.
type linkState struct {
	index int    // O_PATH descriptor of the link index, -1 when there is none
	attr  string // the full name of an attribute with a record, "" without any
}

// entry examines the attributes of the file or directory name in fd.
func (c *checker) entry(fd int, name, path string, st *sys.Stat) {
	attrs, err := sys.ListXattr(fd, name)
	if err != nil && err != unix.EOPNOTSUPP {
		c.unreadable(path, err)
	}
	for _, a := range attrs {
		switch {
		case strings.HasSuffix(a, ".overlay.metacopy") && st.IsRegular() && whiteout.ReservedXattr(a):
			c.found("metacopy", path, "only its metadata is here (kernel overlay's metacopy), its data is in a branch below: copy it with kernel overlay", "", nil)
		case strings.HasSuffix(a, "."+records.LinkAttr) && whiteout.ReservedXattr(a) && !st.IsDir():
			c.linkRecord(fd, name, path, a, st)
		case strings.HasSuffix(a, "."+stub.Attr) && whiteout.ReservedXattr(a) && st.IsRegular():
			c.stub(fd, name, path, a)
		}
	}
}

// linkRecord examines the record attr of a file.
func (c *checker) linkRecord(fd int, name, path, attr string, st *sys.Stat) {
	drop := func() error { return sys.RemoveXattr(fd, name, attr) }
	v, err := sys.GetXattr(fd, name, attr)
	if err != nil {
		c.unreadable(path, err)
		return
	}
	r, ok := records.ParseLink(string(v))
	if !ok {
		c.found("link-record", path, fmt.Sprintf("%q in %s is no record of hard links", v, attr), "dropped", drop)
		return
	}
	c.links.attr = attr
	if c.links.index < 0 {
		return
	}
	switch in, err := sys.StatAt(c.links.index, r.Key, 0); {
	case err == unix.ENOENT:
		c.found("link-record", path, "a copied file with several names that the link index does not have", "entered", func() error {
			return sys.Link(fd, name, c.links.index, r.Key)
		})
	case err != nil:
		c.unreadable(path, err)
	case in.Ino != st.Ino:
		c.found("link-record", path, "the link index has another file for its record", "the record is dropped", drop)
	}
}

// aufsLink is what AUFS calls a pseudo-link.
var aufsLink = regexp.MustCompile(`^[0-9]+\.[0-9]+$`)

// checkLinks examines .wh..wh.plnk, the link index and the mark on the root.
func (c *checker) checkLinks() error {
	if err := c.kept(); err != nil {
		return err
	}
	if c.links.index >= 0 {
		defer sys.Close(c.links.index)
		if err := c.index(); err != nil {
			return err
		}
	}
	if c.links.attr == "" {
		return nil
	}
	mark := strings.TrimSuffix(c.links.attr, records.LinkAttr) + records.LinksAttr
	if _, err := sys.GetXattrInto(c.u.Root, "", mark, nil); err == unix.ENODATA {
		c.found("link-record", ".", "files have records of hard links, but the root does not say so: a lost index would not be built again", "marked", func() error {
			return sys.SetXattr(c.u.Root, "", mark, []byte("y"), 0)
		})
	}
	return nil
}

// kept examines the files that are kept without a name.
func (c *checker) kept() error {
	fd, err := sys.OpenDir(c.u.Root, whiteout.LinkDir)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		c.unreadable(whiteout.LinkDir, err)
		return nil
	}
	defer sys.Close(fd)
	entries, err := sys.ReadDirAt(fd)
	if err != nil {
		c.unreadable(whiteout.LinkDir, err)
		return nil
	}
	return sys.KeepTimes(c.u.Root, func() error {
		for _, e := range entries {
			st, err := sys.StatAt(fd, e.Name, 0)
			if err != nil {
				return err
			}
			c.keptFile(fd, e.Name, &st)
		}
		return nil
	})
}

func (c *checker) keptFile(fd int, name string, st *sys.Stat) {
	path := convert.Join(whiteout.LinkDir, name)
	switch {
	case records.IsKey(name):
		c.entry(fd, name, path, st)
	case aufsLink.MatchString(name) && st.Nlink > 1:
		c.found("aufs-link", path, "a pseudo-link of AUFS that was not flushed; the file has other names", "removed", func() error { return sys.Unlink(fd, name) })
	case aufsLink.MatchString(name):
		c.found("aufs-link", path, "a pseudo-link of AUFS that was not flushed and is the file's only name: compare it with the names that the branches below have of that file", "", nil)
	default:
		c.found("unknown-name", path, "lies among the files that are kept for their links, but is none", "", nil)
	}
}

// index examines the link index.
func (c *checker) index() error {
	entries, err := sys.ReadDirAt(c.links.index)
	if err != nil {
		return fmt.Errorf("reading the link index: %w", err)
	}
	for _, e := range entries {
		switch {
		case records.IsKey(e.Name):
			err = c.copy(e.Name)
		case e.Name[0] == 'n':
			c.deleted(e.Name)
		}
		if err != nil {
			return fmt.Errorf("the link index, %s: %w", e.Name, err)
		}
	}
	return nil
}

// copy examines the entry of a copy, as the recovery of a mount does (fs/recover.go).
func (c *checker) copy(key string) error {
	st, err := sys.StatAt(c.links.index, key, 0)
	if err != nil {
		return err
	}
	r, save := c.recordOf(key)
	if save == nil {
		return nil // there are as many links as in the lower
	}
	path := c.u.WorkDir + "/layerfs/" + records.LinksDir + "/" + key
	if r.Absolute {
		r.N, r.Absolute = r.N-int32(st.Nlink), false
		c.found("link-record", path, "how many links it has was left in the middle of a change", "counted anew", func() error { return save(r.String()) })
	}
	if int64(st.Nlink)+int64(r.N) <= 0 {
		c.found("stray-link-copy", path, "a copy that no name leads to", "removed", func() error { return c.drop(key) })
	}
	return nil
}

// recordOf returns the record of an entry of the index and what replaces it,
// nil without a record.
func (c *checker) recordOf(key string) (r records.Link, save func(text string) error) {
	for _, ns := range []whiteout.Namespace{whiteout.Trusted, whiteout.User} {
		attr := string(ns) + records.LinkAttr
		v, err := sys.GetXattr(c.links.index, key, attr)
		if err != nil {
			continue
		}
		if r, ok := records.ParseLink(string(v)); ok && r.Key == key {
			return r, func(text string) error { return sys.SetXattr(c.links.index, key, attr, []byte(text), 0) }
		}
	}
	note := records.NoteName(key)
	text, err := sys.Readlink(c.links.index, note)
	if r, ok := records.ParseLink(string(text)); err == nil && ok && r.Key == key {
		return r, func(text string) error { return c.putNote(note, text) }
	}
	return r, nil
}

// putNote makes text the note called name in the index, in one step.
func (c *checker) putNote(name, text string) error {
	tmp := tmpPrefix + name
	_ = sys.Unlink(c.u.Tmp, tmp)
	if err := sys.Symlink(text, c.u.Tmp, tmp); err != nil {
		return err
	}
	return sys.Rename(c.u.Tmp, tmp, c.links.index, name, 0)
}

func (c *checker) drop(key string) error {
	for _, at := range []struct {
		fd   int
		name string
	}{{c.u.Root, whiteout.LinkDir + "/" + key}, {c.links.index, records.NoteName(key)}, {c.links.index, key}} {
		if err := sys.Unlink(at.fd, at.name); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

// deleted examines the note of how many names of a lower file are deleted.
func (c *checker) deleted(name string) {
	text, err := sys.Readlink(c.links.index, name)
	if err == nil && records.Announced(string(text)) {
		c.found("link-record", c.u.WorkDir+"/layerfs/"+records.LinksDir+"/"+name, "whether a name of a file with several has been deleted is open: the next mount settles it", "", nil)
		c.pending = true
	}
}
