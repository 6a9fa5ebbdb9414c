package whole

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
)

// NewVFS returns the driver that copies: it works everywhere.
func NewVFS(home string) (*Driver, error) { return newDriver(home, vfs{}) }

type vfs struct{}

func (vfs) make(home int, name string) error { return sys.Mkdir(home, name, 0700) }

func (v vfs) clone(home int, from, name string) error {
	if err := v.make(home, name); err != nil {
		return err
	}
	return copyTree(home, from, name)
}

func (vfs) remove(home int, name string) error { return sys.RemoveAll(home, name) }

// exclusive asks where the extents are only on file systems that can share them.
func (vfs) exclusive(fd int, st *sys.Stat) (int64, error) {
	fs, err := sys.Statfs(fd)
	if err != nil || fs.Type != unix.BTRFS_SUPER_MAGIC && fs.Type != unix.XFS_SUPER_MAGIC {
		return int64(st.Blocks) * 512, err
	}
	return unsharedBytes(fd, st)
}

// info is empty: Docker's vfs said nothing of itself.
func (vfs) info() []driver.Field { return nil }

// unsharedBytes adds up the extents of fd that no other file has.
func unsharedBytes(fd int, st *sys.Stat) (n int64, err error) {
	err = sys.Extents(fd, func(e sys.Extent) {
		if !e.Shared {
			n += int64(e.Length)
		}
	})
	if err == unix.EOPNOTSUPP {
		return int64(st.Blocks) * 512, nil
	}
	return n, err
}
