package check

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/branches/convert"
	"github.com/layerfs/layerfs/branches/offline"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Kind     string `json:"kind"`
	Path     string `json:"path"` // below the branch, "/" for its root; absolute in the work directory
	Wrong    string `json:"wrong"`
	Repair   string `json:"repair"` // what repairing does, "" when it cannot
	Repaired bool   `json:"repaired"`
	Error    string `json:"error,omitempty"` // why a repair failed
}

// String is the finding as one line.
func (f *Finding) String() string {
	switch {
	case f.Error != "":
		return fmt.Sprintf("%s: %s: not repaired: %s", f.Path, f.Wrong, f.Error)
	case f.Repair == "":
		return fmt.Sprintf("%s: %s: no repair", f.Path, f.Wrong)
	case f.Repaired:
		return fmt.Sprintf("%s: %s: repaired: %s", f.Path, f.Wrong, f.Repair)
	}
	return fmt.Sprintf("%s: %s: repair: %s", f.Path, f.Wrong, f.Repair)
}

// Report is the outcome of a check.
type Report struct {
	Branch      string    `json:"branch"`
	Format      string    `json:"format"` // as recorded, "" when nothing is
	Directories int       `json:"directories"`
	Names       int       `json:"names"`
	Findings    []Finding `json:"findings"`
	Left        int       `json:"left"` // findings that are not repaired
	Notes       []string  `json:"notes"`
}

// Options says what to check with.
type Options struct {
	Lowers []string // the branches below, top first
	Repair bool
	Pools  stub.Pools // how the pools of stubs are opened; nil: they are not looked at
	Rebind bool       // pools are told where lower files are now
}

type checker struct {
	*Report
	u       *offline.Upper
	repair  bool
	was     convert.Recorded
	to      whiteout.Format // what marks are to be written in
	low     *branches.Stack // nil when the lowers are not known
	links   linkState
	stubs   stubs
	rebind  bool
	pending bool // a record is left for the next mount to settle
}

// Run examines u. An error is a failure of the check, not a finding.
func Run(u *offline.Upper, o Options) (*Report, error) {
	c := &checker{Report: &Report{Branch: u.Path, Findings: []Finding{}, Notes: []string{}}, u: u, repair: o.Repair, rebind: o.Rebind}
	if err := c.openLowers(o.Lowers); err != nil {
		return nil, err
	}
	if c.low != nil {
		defer c.low.Close()
	}
	for _, who := range u.Users {
		c.note("the branch is in use by %s: what changes meanwhile may be reported as wrong", who)
	}
	if u.WorkDir == "" {
		c.note("the work directory is not known (--workdir): interrupted renames and the link index are not checked")
	}
	c.record()
	c.openStubs(o.Pools)
	defer c.closeStubs()
	if err := c.workBefore(); err != nil {
		return nil, err
	}
	if err := c.walk(u.Root, ".", false, nil); err != nil {
		return nil, err
	}
	if err := c.checkLinks(); err != nil {
		return nil, err
	}
	c.checkDevices()
	c.workAfter()
	return c.Report, nil
}

func (c *checker) note(format string, args ...any) {
	c.Notes = append(c.Notes, fmt.Sprintf(format, args...))
}

func (c *checker) openLowers(dirs []string) error {
	if len(dirs) == 0 {
		c.note("the branches below are not known (--lower): redirects and whiteouts are not compared with them")
		return nil
	}
	cfg := branches.Config{ReadOnly: true}
	for _, d := range dirs {
		cfg.Branches = append(cfg.Branches, branches.Spec{Path: d, Mode: branches.RO})
	}
	var err error
	c.low, err = branches.Open(cfg)
	return err
}

// found reports something wrong and mends it when that is wanted and known
// how. It reports whether it has mended it.
func (c *checker) found(kind, path, wrong, repair string, mend func() error) bool {
	f := Finding{Kind: kind, Path: shown(path), Wrong: wrong, Repair: repair}
	if c.repair && mend != nil {
		if err := mend(); err != nil {
			f.Error = err.Error()
		} else {
			f.Repaired = true
		}
	}
	if !f.Repaired {
		c.Left++
	}
	c.Findings = append(c.Findings, f)
	return f.Repaired
}

// shown is a path of the branch as people read it.
func shown(path string) string {
	switch {
	case path == ".":
		return "/"
	case strings.HasPrefix(path, "/"):
		return path
	}
	return "/" + path
}

// record examines the format record and settles what marks are written in.
func (c *checker) record() {
	list, err := convert.Records(c.u.Root)
	if err == nil {
		c.was, err = convert.ReadRecord(c.u.Root)
	}
	c.to = whiteout.Format{Dialect: whiteout.AUFS, NS: whiteout.User}
	switch {
	case err != nil:
		c.found("format-record", ".", fmt.Sprintf("the format record is broken, so writable mounts refuse: %v", err), "", nil)
	case c.was.UnderWay:
		c.found("conversion-under-way", ".", fmt.Sprintf("a conversion was interrupted, so writable mounts refuse: complete it with `layerfs convert --to %s`", c.was.Format.Dialect), "", nil)
	case c.was.Known:
		c.to, c.Format = c.was.Format, c.was.Format.String()
		if other := differing(list); other != nil {
			c.found("format-record", ".", fmt.Sprintf("two format records: %q in %s counts, %q in %s does not", list[0].Text, list[0].Where(), other.Text, other.Where()),
				"the second is removed", func() error { return convert.Finish(c.u.Root, c.to) })
		}
	}
}

func differing(list []convert.Record) *convert.Record {
	for i := range list {
		if list[i].Text != list[0].Text {
			return &list[i]
		}
	}
	return nil
}

// walk examines the directory open at fd and all below it. beside: a whiteout
// lies beside it; low is what the lowers have of its parent, nil for nothing.
func (c *checker) walk(fd int, path string, beside bool, low *branches.Dir) error {
	v, err := convert.Read(fd, path == ".", beside)
	if err != nil {
		c.unreadable(path, err)
		return nil
	}
	c.Directories++
	below, err := c.follow(v, path, low)
	if err != nil {
		return err
	}
	if below != nil {
		defer below.Close()
	}
	for _, n := range v.Names {
		if n.At != convert.Entry {
			continue
		}
		c.Names++
		c.entry(v.FD, n.Name, convert.Join(path, n.Name), &n.Stat)
		if !n.Stat.IsDir() {
			continue
		}
		if err := c.into(v, path, n, below); err != nil {
			return err
		}
	}
	d := &directory{c, v, path, below}
	if c.repair {
		return sys.KeepTimes(fd, d.check)
	}
	return d.check()
}

func (c *checker) unreadable(path string, err error) {
	c.found("unreadable", path, fmt.Sprintf("cannot be read, so what is in it is not checked: %v", err), "", nil)
}

func (c *checker) into(v *convert.View, path string, n *convert.Name, low *branches.Dir) error {
	path = convert.Join(path, n.Name)
	fd, err := sys.OpenDir(v.FD, n.Name)
	if err == unix.EXDEV {
		c.note("%s: something is mounted on it, so what is below is not checked", shown(path))
		return nil
	}
	if err != nil {
		c.unreadable(path, err)
		return nil
	}
	defer sys.Close(fd)
	return c.walk(fd, path, n.Beside, low)
}

// follow returns what the lowers have below v, at its own name or where its
// redirect says; low is what they have of its parent.
func (c *checker) follow(v *convert.View, name string, low *branches.Dir) (*branches.Dir, error) {
	switch {
	case v.Opaque || c.low == nil:
		return nil, nil
	case v.Root:
		return c.low.Root(), nil
	case v.Redirect != "":
		name = v.Redirect
	default:
		name = name[strings.LastIndexByte(name, '/')+1:]
	}
	if name[0] == '/' {
		low, name = c.low.Root(), name[1:]
	}
	for _, part := range strings.Split(name, "/") {
		if low == nil || len(part) > unix.NAME_MAX {
			return nil, nil
		}
		res, err := c.low.Lookup(low, part)
		if err != nil {
			return nil, errs.New(errs.Of(err), "looking up %s in the branches below: %w", name, err)
		}
		low = res.Dir
	}
	return low, nil
}
