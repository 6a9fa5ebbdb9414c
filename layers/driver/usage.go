package driver

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// block is the unit of stat's block counts, in bytes.
const block = 512

// DiskUsage adds up what is allocated below dir, every inode once. Mounts are
// not entered. exclusive, when it is not nil, says how much of a regular file of
// several blocks is not shared with others, in bytes.
func DiskUsage(dir string, exclusive func(fd int, st *sys.Stat) (int64, error)) (Usage, error) {
	fd, err := sys.OpenRoot(dir)
	if err != nil {
		return Usage{}, err
	}
	defer sys.Close(fd)
	c := counter{seen: map[uint64]bool{}, exclusive: exclusive}
	st, err := sys.FStat(fd)
	if err != nil {
		return Usage{}, err
	}
	c.Inodes, c.Bytes = 1, int64(st.Blocks)*block
	return c.Usage, c.directory(fd)
}

type counter struct {
	Usage
	seen      map[uint64]bool // inodes with several names
	exclusive func(fd int, st *sys.Stat) (int64, error)
}

func (c *counter) directory(fd int) error {
	entries, err := sys.ReadDirAt(fd)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := c.entry(fd, e.Name); err != nil && err != unix.ENOENT && err != unix.EXDEV {
			return err
		}
	}
	return nil
}

func (c *counter) entry(dirfd int, name string) error {
	st, err := sys.StatAt(dirfd, name, 0)
	if err != nil || st.MountRoot || c.seen[st.Ino] {
		return err
	}
	if st.Nlink > 1 && !st.IsDir() {
		c.seen[st.Ino] = true
	}
	c.Inodes++
	bytes := int64(st.Blocks) * block
	if c.exclusive != nil && st.IsRegular() && bytes > 0 {
		if bytes, err = c.unshared(dirfd, name, &st); err != nil {
			return err
		}
	}
	c.Bytes += bytes
	if !st.IsDir() {
		return nil
	}
	fd, err := sys.OpenDir(dirfd, name)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return c.directory(fd)
}

func (c *counter) unshared(dirfd int, name string, st *sys.Stat) (int64, error) {
	fd, err := sys.OpenUntouched(dirfd, name, 0)
	if err != nil {
		return int64(st.Blocks) * block, nil // not for us to read; all of it then
	}
	defer sys.Close(fd)
	return c.exclusive(fd, st)
}
