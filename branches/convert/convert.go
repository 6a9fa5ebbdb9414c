package convert

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches/offline"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Result tells what a conversion has done.
type Result struct {
	From        string `json:"from"` // "" when nothing was recorded
	To          string `json:"to"`
	Resumed     bool   `json:"resumed"` // an interrupted conversion was completed
	Directories int    `json:"directories"`
	Changes     int    `json:"changes"` // whiteouts and marks that were rewritten
}

type conversion struct {
	*Result
	path    string
	to      whiteout.Format
	maxName int
	moving  bool // records may lie in the other namespace
}

// Run converts u to the dialect d. ns is the namespace of the xattrs from now
// on, "" for the one that is recorded.
func Run(u *offline.Upper, d whiteout.Dialect, ns whiteout.Namespace) (*Result, error) {
	if err := settled(u); err != nil {
		return nil, err
	}
	was, to, err := chooseFormat(u.Root, u.Path, d, ns)
	if err != nil {
		return nil, err
	}
	c := &conversion{Result: &Result{To: to.String(), Resumed: was.UnderWay}, path: u.Path, to: to}
	if was.Known && !was.UnderWay {
		c.From = was.Format.String()
	}
	c.moving = was.UnderWay || was.Known && was.Format.NS != to.NS
	fs, err := sys.Statfs(u.Root)
	if err != nil {
		return nil, errs.New(errs.Of(err), "branch %s: %w", u.Path, err)
	}
	c.maxName = to.MaxName(int(fs.Namelen))
	if err := c.walk(u.Root, ".", c.refuse); err != nil {
		return nil, err
	}
	c.Directories = 0
	if err := c.convert(u.Root); err != nil {
		return nil, err
	}
	return c.Result, nil
}

func (c *conversion) convert(root int) error {
	if err := begin(root, c.to); err != nil {
		return errs.New(errs.Of(err), "recording the conversion of %s: %w", c.path, err)
	}
	if err := c.walk(root, ".", c.rewrite); err != nil {
		return err
	}
	if c.to.Dialect != whiteout.AUFS {
		dropBase(root)
	}
	if err := Finish(root, c.to); err != nil {
		return errs.New(errs.Of(err), "recording the conversion of %s: %w", c.path, err)
	}
	return nil
}

// settled refuses a branch with a rename of which the second step is due: it
// would put a whiteout of the old dialect there.
func settled(u *offline.Upper) error {
	if u.Keep < 0 {
		return nil
	}
	entries, err := sys.ReadDirAt(u.Keep)
	if err != nil {
		return errs.New(errs.Of(err), "work directory %s: %w", u.WorkDir, err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name, records.RenamePrefix) {
			return errs.New(errs.Corrupt, "the last mount of %s was killed in the middle of a rename: mount it once, or `layerfs check --repair` it", u.Path)
		}
	}
	return nil
}

// walk visits every directory below fd, those inside before the one that they are in.
func (c *conversion) walk(fd int, path string, visit func(v *View, path string) error) error {
	return c.walkIn(fd, path, false, visit)
}

func (c *conversion) walkIn(fd int, path string, beside bool, visit func(v *View, path string) error) error {
	v, err := Read(fd, path == ".", beside)
	if err != nil {
		return c.fail(path, err)
	}
	for _, n := range v.Names {
		if n.At != Entry || !n.Stat.IsDir() {
			continue
		}
		if err := c.into(v, n, path, visit); err != nil {
			return err
		}
	}
	c.Directories++
	return visit(v, path)
}

func (c *conversion) into(v *View, n *Name, path string, visit func(v *View, path string) error) error {
	path = Join(path, n.Name)
	fd, err := sys.OpenDir(v.FD, n.Name)
	if err == unix.EXDEV {
		return errs.New(errs.Busy, "something is mounted on %s in the branch %s: unmount it first", path, c.path)
	}
	if err != nil {
		return c.fail(path, err)
	}
	defer sys.Close(fd)
	return c.walkIn(fd, path, n.Beside, visit)
}

// Join appends a name to the path of a directory in a branch, "." for its root.
func Join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

func (c *conversion) fail(path string, err error) error {
	return errs.New(errs.Of(err), "converting %s in the branch %s: %w", path, c.path, err)
}

// refuse says what would stand in the way of rewriting v.
func (c *conversion) refuse(v *View, path string) error {
	for _, n := range v.Names {
		if n.Content {
			return errs.New(errs.Corrupt, "%s is a whiteout by its name, but there is something in it: rename it, or empty it", Join(path, whiteout.Prefix+n.Name))
		}
	}
	if c.to.Dialect == whiteout.AUFS && !v.Opaque {
		for _, n := range v.Names {
			at := Join(path, n.Name)
			switch {
			case !n.IsWhiteout():
			case len(n.Name) > c.maxName:
				return errs.New(errs.Unsupported, "%s is deleted, and its name of %d bytes is too long for an aufs whiteout (%d): remove that whiteout, or keep the dialect", at, len(n.Name), c.maxName)
			case n.Bad:
				return errs.New(errs.Corrupt, "%s is deleted, and what lies at %s is no whiteout: rename or remove it", at, Join(path, whiteout.Prefix+n.Name))
			}
		}
	}
	if len(v.Steps(c.to)) == 0 {
		return nil
	}
	if err := sys.Access(v.FD, unix.W_OK|unix.X_OK); err != nil {
		return errs.New(errs.Of(err), "%s in the branch %s cannot be written: %w", path, c.path, err)
	}
	return nil
}

func (c *conversion) rewrite(v *View, path string) error {
	if c.moving {
		if err := c.moveRecords(v); err != nil {
			return c.fail(path, err)
		}
	}
	list := v.Steps(c.to)
	if len(list) == 0 {
		return nil
	}
	err := sys.KeepTimes(v.FD, func() error {
		for _, s := range list {
			if err := s.Do(); err != nil {
				return err
			}
			c.Changes++
		}
		return nil
	})
	if err != nil {
		return c.fail(path, err)
	}
	return nil
}

// dropBase removes the file that AUFS's whiteouts were links of: kernel
// overlay would show it.
func dropBase(root int) {
	st, err := sys.StatAt(root, whiteout.Base, 0)
	if err == nil && st.IsRegular() && st.Size == 0 {
		_ = sys.KeepTimes(root, func() error { return sys.Unlink(root, whiteout.Base) })
	}
}

// moveRecords moves layerfs's records of what is in v to the namespace of the
// format.
func (c *conversion) moveRecords(v *View) error {
	from := whiteout.Trusted
	if c.to.NS == from {
		from = whiteout.User
	}
	for _, n := range v.Names {
		if n.At == Entry {
			if err := moveAttrs(v.FD, n.Name, from, c.to.NS, records.OriginAttr, records.LinkAttr); err != nil {
				return err
			}
		}
	}
	if !v.Root {
		return nil
	}
	if err := moveAttrs(v.FD, "", from, c.to.NS, records.LinksAttr, records.OriginAttr); err != nil {
		return err
	}
	copies, err := sys.OpenDir(v.FD, whiteout.LinkDir)
	if err != nil {
		return nil // there are none
	}
	defer sys.Close(copies)
	entries, err := sys.ReadDirAt(copies)
	for _, e := range entries {
		if err == nil {
			err = moveAttrs(copies, e.Name, from, c.to.NS, records.OriginAttr, records.LinkAttr)
		}
	}
	return err
}

// moveAttrs moves attributes of one file; those that cannot be had in the
// other namespace stay.
func moveAttrs(fd int, name string, from, to whiteout.Namespace, attrs ...string) error {
	for _, a := range attrs {
		value, err := sys.GetXattr(fd, name, string(from)+a)
		if err == nil {
			err = sys.SetXattr(fd, name, string(to)+a, value, 0)
		}
		if lacks(err) {
			continue
		}
		if err == nil {
			err = sys.RemoveXattr(fd, name, string(from)+a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
