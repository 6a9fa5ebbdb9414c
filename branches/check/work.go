package check

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// tmpPrefix starts the names of a repair's temporaries in WORKDIR/work.
const tmpPrefix = "check-"

// kernelMarks is where kernel overlay puts marks in WORKDIR/work.
const kernelMarks = "incompat"

// workBefore examines the work directory, but for what depends on the branch.
func (c *checker) workBefore() error {
	c.links.index = -1
	if c.u.WorkDir == "" || len(c.u.Users) > 0 {
		return nil
	}
	if c.u.Tmp >= 0 {
		if err := c.temporaries(); err != nil {
			return err
		}
	}
	if c.u.Keep < 0 {
		return nil
	}
	if _, err := sys.StatAt(c.u.Keep, records.VolatileMark, 0); err == nil {
		path := c.u.WorkDir + "/layerfs/" + records.VolatileMark
		c.found("volatile-mark", path, "the last volatile mount did not end cleanly, so changes may be missing: start afresh, or remove this to use the branch as it is", "", nil)
	}
	if fd, err := sys.OpenDir(c.u.Keep, records.LinksDir); err == nil {
		c.links.index = fd
	} else if err != unix.ENOENT {
		return fmt.Errorf("opening the link index: %w", err)
	}
	return c.renames()
}

func (c *checker) temporaries() error {
	entries, err := sys.ReadDirAt(c.u.Tmp)
	if err != nil {
		return fmt.Errorf("reading the work directory: %w", err)
	}
	for _, e := range entries {
		path := c.u.WorkDir + "/work/" + e.Name
		if e.Name == kernelMarks {
			c.found("volatile-mark", path, "a volatile mount of kernel overlay did not end cleanly, so changes may be missing: start afresh, or remove this to use the branch as it is", "", nil)
			continue
		}
		if st, err := sys.StatAt(c.u.Tmp, e.Name, 0); err == nil && st.IsWhiteout() && strings.HasPrefix(e.Name, "#") {
			continue // kernel overlay leaves the one that its whiteouts are links of
		}
		c.found("leftover-temporary", path, "a temporary of a mount that did not end cleanly", "removed", func() error { return sys.RemoveAll(c.u.Tmp, e.Name) })
	}
	return nil
}

// renames deals with renames that were killed between their two steps.
func (c *checker) renames() error {
	entries, err := sys.ReadDirAt(c.u.Keep)
	if err != nil {
		return fmt.Errorf("reading the work directory: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name, records.RenamePrefix) {
			continue
		}
		text, err := c.read(e.Name)
		if err != nil {
			return fmt.Errorf("reading %s: %w", e.Name, err)
		}
		mend := func() error { return sys.Unlink(c.u.Keep, e.Name) }
		note, ok := records.ParseRename(text)
		if !ok {
			c.found("interrupted-rename", c.u.WorkDir+"/layerfs/"+e.Name, "a note of a rename that makes no sense", "removed", mend)
			continue
		}
		done := c.found("interrupted-rename", note.From, "a rename to "+shown(note.To)+" was interrupted", "completed", func() error {
			if err := c.finish(note); err != nil {
				return err
			}
			return mend()
		})
		c.pending = c.pending || !done
	}
	return nil
}

func (c *checker) read(name string) (string, error) {
	fd, err := sys.OpenIn(c.u.Keep, name, unix.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer sys.Close(fd)
	buf := make([]byte, 3*unix.PathMax)
	n, err := sys.PRead(fd, buf, 0)
	return string(buf[:n]), err
}

// finish takes the second step of a rename if it is due, as the recovery of a
// mount does (fs/recover.go).
func (c *checker) finish(r records.Rename) error {
	to, _, st, err := c.inBranch(r.To)
	if err != nil {
		return nil
	}
	sys.Close(to)
	if st.Ino != r.ToIno {
		return nil
	}
	from, name, st, err := c.inBranch(r.From)
	if err != nil {
		return nil
	}
	defer sys.Close(from)
	if st.Ino != r.FromIno {
		return nil
	}
	if !c.was.Known || !c.to.InPlace() {
		return fmt.Errorf("the branch is not recorded in a dialect of such renames")
	}
	tmp := tmpPrefix + "whiteout"
	_ = sys.Unlink(c.u.Tmp, tmp)
	if err := c.to.Make(c.u.Tmp, tmp); err != nil {
		return err
	}
	var flags uint
	if st.IsDir() {
		flags = sys.RenameExchange
	}
	if err := sys.Rename(c.u.Tmp, tmp, from, name, flags); err != nil || !st.IsDir() {
		return err
	}
	return sys.RemoveAll(c.u.Tmp, tmp) // the directory, which shows nothing
}

// inBranch finds a path in the branch: its directory, its name and what is there.
func (c *checker) inBranch(path string) (fd int, name string, st sys.Stat, err error) {
	dir, name := ".", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	if fd, err = sys.OpenDir(c.u.Root, dir); err != nil {
		return -1, name, st, err
	}
	if whiteout.Reserved(name) {
		err = unix.ENOENT
	} else {
		st, err = sys.StatAt(fd, name, 0)
	}
	if err != nil {
		sys.Close(fd)
	}
	return fd, name, st, err
}

// workAfter deals with the mark of an unclean end. It makes the next mount look
// through the records, so it stays while one is not in order.
func (c *checker) workAfter() {
	if c.u.Keep < 0 || len(c.u.Users) > 0 {
		return
	}
	if _, err := sys.StatAt(c.u.Keep, records.LiveMark, 0); err != nil {
		return
	}
	repair, mend := "the mark is removed", func() error { return sys.Unlink(c.u.Keep, records.LiveMark) }
	for _, f := range c.Findings {
		if !f.Repaired && (f.Kind == "link-record" || f.Kind == "stray-link-copy") {
			c.pending = true
		}
	}
	if c.repair && c.pending {
		repair, mend = "", nil
	}
	c.found("live-mark", c.u.WorkDir+"/layerfs/"+records.LiveMark, "the last mount did not end cleanly: the next one looks its records through", repair, mend)
}
