package whole

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
)

// copyTree copies what is in the directory from of home, and its attributes, into
// the empty directory to there. Hard links stay links, holes stay holes; where the
// file system can, data is shared. Mounts are not entered.
func copyTree(home int, from, to string) error {
	c := copier{links: map[inode]name{}}
	defer c.close()
	return c.directory(home, from, home, to, "")
}

type inode struct{ dev, ino uint64 }

// name is where a copy is; the directory stays open.
type name struct {
	dir  int
	name string
}

type copier struct {
	links map[inode]name // the first copies of files with several names
	kept  []int          // directories that links needs
}

func (c *copier) close() {
	for _, fd := range c.kept {
		sys.Close(fd)
	}
}

// directory copies the directory from in src to the directory to in dst, which is
// there and empty. path is for messages.
func (c *copier) directory(src int, from string, dst int, to, path string) error {
	in, err := sys.OpenDir(src, from)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer sys.Close(in)
	out, err := sys.OpenDir(dst, to)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer sys.Close(out)
	entries, err := sys.ReadDirUntouched(in)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, e := range entries {
		if err := c.entry(in, out, e.Name, path+"/"+e.Name); err != nil {
			return err
		}
	}
	st, err := sys.FStat(in)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := driver.CopyAttributes(in, out, "", &st); err != nil {
		return fmt.Errorf("%s: attributes: %w", path, err)
	}
	return nil
}

func (c *copier) entry(in, out int, name, path string) error {
	st, err := sys.StatAt(in, name, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if st.IsDir() {
		if err := sys.Mkdir(out, name, 0700); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if st.MountRoot {
			return nil
		}
		return c.directory(in, name, out, name, path)
	}
	linked, err := c.linked(out, name, &st)
	if err == nil && !linked {
		if err = c.file(in, out, name, &st); err == nil {
			err = driver.CopyAttributes(in, out, name, &st)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// linked makes name a link to a copy that there is already of its file.
func (c *copier) linked(out int, at string, st *sys.Stat) (bool, error) {
	if st.Nlink < 2 {
		return false, nil
	}
	id := inode{st.Dev, st.Ino}
	if first, ok := c.links[id]; ok {
		return true, sys.Link(first.dir, first.name, out, at)
	}
	dir, err := c.keep(out)
	c.links[id] = name{dir, at}
	return false, err
}

// keep returns a descriptor of the directory out that stays open until the end.
func (c *copier) keep(out int) (int, error) {
	if n := len(c.kept); n > 0 {
		a, errA := sys.FStat(c.kept[n-1])
		b, errB := sys.FStat(out)
		if errA == nil && errB == nil && a.Ino == b.Ino {
			return c.kept[n-1], nil
		}
	}
	fd, err := sys.Dup(out)
	if err == nil {
		c.kept = append(c.kept, fd)
	}
	return fd, err
}

func (c *copier) file(in, out int, name string, st *sys.Stat) error {
	switch st.Type() {
	case unix.S_IFREG:
		return copyContent(in, out, name, st)
	case unix.S_IFLNK:
		target, err := sys.Readlink(in, name)
		if err != nil {
			return err
		}
		return sys.Symlink(string(target), out, name)
	default:
		return sys.Mknod(out, name, st.Type()|0600, st.Rdev)
	}
}

func copyContent(in, out int, name string, st *sys.Stat) error {
	src, err := sys.OpenUntouched(in, name, 0)
	if err != nil {
		return err
	}
	defer sys.Close(src)
	dst, err := sys.OpenIn(out, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0600)
	if err != nil {
		return err
	}
	defer sys.Close(dst)
	return sys.CopyData(dst, src, int64(st.Size), false)
}
