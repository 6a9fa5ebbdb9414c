package whole

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
)

// NewBtrfs returns the driver that makes snapshots. home has to be on btrfs.
func NewBtrfs(home string) (*Driver, error) {
	d, err := newDriver(home, btrfs{})
	if err != nil {
		return nil, err
	}
	if err := onBtrfs(home); err != nil {
		return nil, err
	}
	return d, nil
}

func onBtrfs(dir string) error {
	if fs := driver.BackingFilesystem(dir); fs != "btrfs" {
		return errs.New(errs.Unsupported, "%s lies on %s, not on btrfs", dir, fs)
	}
	return nil
}

type btrfs struct{}

func (btrfs) make(home int, name string) error {
	return opened(home, ".", func(dir int) error { return sys.MakeSubvolume(dir, name) })
}

func (btrfs) clone(home int, from, name string) error {
	return opened(home, ".", func(dir int) error {
		return opened(home, from, func(src int) error { return sys.Snapshot(dir, name, src, false) })
	})
}

// opened calls use with the directory name in dirfd, open as ioctls want it.
func opened(dirfd int, name string, use func(fd int) error) error {
	fd, err := sys.OpenIn(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return use(fd)
}

func destroy(dirfd int, name string) error {
	return opened(dirfd, ".", func(dir int) error { return sys.RemoveSubvolume(dir, name) })
}

// remove removes a subvolume. Subvolumes that lie in it go first: a snapshot does not
// have them, and they keep it from going. An ordinary user, who may not destroy a
// subvolume unless it was mounted so, empties it instead.
func (b btrfs) remove(home int, name string) error {
	err := destroy(home, name)
	switch err {
	case nil, unix.ENOENT:
		return nil
	case unix.EPERM:
		return sys.RemoveAll(home, name)
	case unix.ENOTEMPTY:
	default:
		return err
	}
	if err := b.removeNested(home, name); err != nil {
		return err
	}
	return destroy(home, name)
}

// subvolumeRoot is the inode number of the root of every subvolume
// (BTRFS_FIRST_FREE_OBJECTID).
const subvolumeRoot = 256

// removeNested removes the subvolumes below the directory name in dirfd.
func (b btrfs) removeNested(dirfd int, name string) error {
	fd, err := sys.OpenDir(dirfd, name)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	entries, err := sys.ReadDirAt(fd)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type != unix.DT_DIR {
			continue
		}
		st, err := sys.StatAt(fd, e.Name, 0)
		if err == nil && st.MountRoot {
			err = unix.EBUSY
		}
		if err == nil && st.Ino == subvolumeRoot {
			err = b.remove(fd, e.Name)
		} else if err == nil {
			err = b.removeNested(fd, e.Name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return nil
}

func (btrfs) exclusive(fd int, st *sys.Stat) (int64, error) { return unsharedBytes(fd, st) }

// info is what Docker printed: versions of a library that is not used here.
func (btrfs) info() []driver.Field { return []driver.Field{{Name: "Btrfs", Value: ""}} }
