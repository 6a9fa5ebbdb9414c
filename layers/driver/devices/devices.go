package devices

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/oci"
)

// Driver is a driver.Driver.
type Driver struct {
	home string
	pool Pool
	fs   fileSystems
	opts Options
}

// New returns the driver whose own files are in home and whose devices are in pool.
func New(home string, pool Pool, o Options) (*Driver, error) {
	if err := os.MkdirAll(filepath.Join(home, "mnt"), 0700); err != nil {
		return nil, err
	}
	d := &Driver{home: home, pool: pool, opts: o}
	d.fs = fileSystems{o: &d.opts, kernel: os.Geteuid() == 0 && !sys.InUserNamespace()}
	return d, d.openBase()
}

// Pool is where the driver has its devices.
func (d *Driver) Pool() Pool { return d.pool }

func (d *Driver) point(id string) string { return filepath.Join(d.home, "mnt", id) }

// locked runs fn while no other process attaches or detaches devices.
func (d *Driver) locked(fn func() error) error {
	f, err := os.OpenFile(filepath.Join(d.home, "lock"), os.O_RDWR|os.O_CREATE, 0600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := sys.FlockWait(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	return fn()
}

// Create implements driver.Driver.
func (d *Driver) Create(t driver.Tree) error {
	if err := d.checkFree(); err != nil {
		return err
	}
	origin := baseName
	if parent, ok := t.Parent(); ok {
		origin = parent.ID
	}
	size, err := d.pool.Size(baseName)
	if err != nil {
		return err
	}
	return d.pool.Snapshot(origin, t.ID, size)
}

// Commit implements driver.Driver: a snapshot.
func (d *Driver) Commit(from, to driver.Tree) error {
	if err := d.checkFree(); err != nil {
		return err
	}
	if at, _ := d.mounted(from.ID); at != "" {
		if err := flush(at); err != nil {
			return err
		}
	}
	size, err := d.pool.Size(from.ID)
	if err != nil {
		return err
	}
	return d.pool.Snapshot(from.ID, to.ID, size)
}

func flush(at string) error {
	fd, err := sys.OpenRoot(at)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	if err := sys.SyncFS(fd); err != nil {
		return fmt.Errorf("writing out %s: %w", at, err)
	}
	return nil
}

// checkFree refuses a new device when less is free than dm.min_free_space asks for,
// of data or of metadata, in Docker's words.
func (d *Driver) checkFree() error {
	if d.opts.MinFreeSpacePercent == 0 {
		return nil
	}
	s, err := d.pool.Space()
	if err != nil {
		return err
	}
	for _, k := range []struct {
		what      string
		free, all int64
		block     int64
	}{
		{"data", s.DataTotal - s.DataUsed, s.DataTotal, s.BlockSize},
		{"metadata", s.MetadataTotal - s.MetadataUsed, s.MetadataTotal, metadataBlock},
	} {
		free := k.free / k.block
		least := max(k.all/k.block*int64(d.opts.MinFreeSpacePercent)/100, 1)
		if free < least {
			return errs.New(errs.NoSpace, "devmapper: Thin Pool has %d free %s blocks which is less than minimum required %d free %s blocks. Create more free space in thin pool or use dm.min_free_space option to change behavior", free, k.what, least, k.what)
		}
	}
	return nil
}

// metadataBlock is the unit of dm-thin's metadata, in bytes.
const metadataBlock = 4096

// Apply implements driver.Driver.
func (d *Driver) Apply(t driver.Tree, layer io.Reader, warn func(string)) error {
	return d.with(t.ID, false, func(root string) error {
		return oci.Apply(layer, root, oci.Options{Whole: true, Warn: warn})
	})
}

// Remove implements driver.Driver.
func (d *Driver) Remove(id string) error {
	if err := d.release(id); err != nil {
		return err
	}
	return d.pool.Remove(id)
}

// Compare implements driver.Driver. The parent is looked at read-only.
func (d *Driver) Compare(t driver.Tree, use func(branches.Comparison) error) error {
	return d.with(t.ID, true, func(root string) error {
		cmp := branches.Comparison{Whole: true, Uppers: []string{root}}
		parent, ok := t.Parent()
		if !ok {
			return use(cmp)
		}
		return d.with(parent.ID, true, func(old string) error {
			cmp.Lowers = []string{old}
			return use(cmp)
		})
	})
}

// Direct implements driver.Driver.
func (d *Driver) Direct(driver.Tree) string { return "" }

// Mount implements driver.Driver. The kernel's file system is mounted where only the
// driver looks, and its tree shown at at; fuse2fs can show the tree by itself.
func (d *Driver) Mount(t driver.Tree, at string, o driver.Options) error {
	if !d.fs.kernel {
		_, err := d.mountFS(t.ID, at, o.ReadOnly)
		return err
	}
	root, err := d.mountFS(t.ID, d.point(t.ID), false)
	if err != nil {
		return err
	}
	if err := sys.Bind(root, at, o.ReadOnly); err != nil {
		return errors.Join(errs.New(errs.Of(err), "mounting on %s: %w", at, err), d.release(t.ID))
	}
	return nil
}

// Unmount implements driver.Driver.
func (d *Driver) Unmount(t driver.Tree, at string) error {
	if d.fs.kernel {
		if err := driver.Unmount(at); err != nil {
			return err
		}
	}
	return d.release(t.ID)
}

// with calls use with the directory that t.ID's tree is in, mounted for that time
// unless it is already.
func (d *Driver) with(id string, readOnly bool, use func(root string) error) error {
	if _, root := d.mounted(id); root != "" {
		return use(root)
	}
	root, err := d.mountFS(id, d.point(id), readOnly)
	if err != nil {
		return err
	}
	return errors.Join(use(root), d.release(id))
}

// mounted returns where the file system of a tree is mounted, and where the tree is;
// "" when it is not.
func (d *Driver) mounted(id string) (point, root string) {
	return d.fs.mounted(d.pool.Path(id), d.point(id))
}

// mountFS attaches the device of a tree, mounts its file system on at unless it is
// mounted, and returns where the tree is.
func (d *Driver) mountFS(id, at string, readOnly bool) (root string, err error) {
	err = d.locked(func() error {
		if _, root = d.mounted(id); root != "" {
			return nil
		}
		if err := os.MkdirAll(at, 0700); err != nil {
			return err
		}
		path, err := d.pool.Attach(id)
		if err == nil {
			root, err = d.fs.mount(path, at, readOnly)
		}
		if err != nil {
			_ = os.Remove(d.point(id))
			return errors.Join(err, d.pool.Detach(id))
		}
		return nil
	})
	return root, err
}

// release unmounts the file system of a tree, if it is mounted, and detaches the
// device. Whoever uses the tree keeps that from happening: Busy.
func (d *Driver) release(id string) error {
	return d.locked(func() error {
		if at, _ := d.mounted(id); at != "" {
			if err := d.fs.unmount(at); err != nil {
				return err
			}
		}
		if err := os.Remove(d.point(id)); err != nil && !os.IsNotExist(err) {
			return err
		}
		return d.pool.Detach(id)
	})
}

// Source implements driver.Driver. The file system stays mounted until Unmount.
func (d *Driver) Source(t driver.Tree) (driver.Source, error) {
	root, err := d.mountFS(t.ID, d.point(t.ID), false)
	return driver.Source{Dir: root}, err
}

// Usage implements driver.Driver. Inodes are the file system's business.
func (d *Driver) Usage(t driver.Tree) (driver.Usage, error) {
	if at, _ := d.mounted(t.ID); at != "" {
		if err := flush(at); err != nil {
			return driver.Usage{}, err
		}
	}
	n, err := d.pool.Usage(t.ID)
	return driver.Usage{Bytes: n}, err
}
