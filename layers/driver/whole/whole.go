// Package whole keeps every tree in full: the driver vfs in plain directories,
// which are copied (by reflink where the file system can), the driver btrfs in
// subvolumes, which are snapshots of each other.
//
// On disk a tree is the directory or subvolume HOME/ID. It can be used where it
// is; a mount elsewhere is a bind mount.
package whole

import (
	"io"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/oci"
)

// keeper makes and removes directories that hold a tree.
type keeper interface {
	// make makes the empty directory name in home, clone a copy of the directory from there.
	make(home int, name string) error
	clone(home int, from, name string) error
	// remove removes name in home and all below it; absence is no error.
	remove(home int, name string) error
	// exclusive is what of a regular file's blocks is not shared, in bytes.
	exclusive(fd int, st *sys.Stat) (int64, error)
	info() []driver.Field
}

// Driver is a driver.Driver.
type Driver struct {
	home string
	keep keeper
}

func newDriver(home string, k keeper) (*Driver, error) {
	if err := sys.MakeDirs(home, 0755); err != nil {
		return nil, err
	}
	return &Driver{home, k}, nil
}

func (d *Driver) path(id string) string { return filepath.Join(d.home, id) }

// inHome calls use with the directory of the trees.
func (d *Driver) inHome(use func(home int) error) error {
	fd, err := sys.OpenRoot(d.home)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return use(fd)
}

// Create implements driver.Driver.
func (d *Driver) Create(t driver.Tree) error {
	return d.inHome(func(home int) error {
		if parent, ok := t.Parent(); ok {
			return d.keep.clone(home, parent.ID, t.ID)
		}
		if err := d.keep.make(home, t.ID); err != nil {
			return err
		}
		return sys.ChmodAt(home, t.ID, 0755)
	})
}

// Apply implements driver.Driver.
func (d *Driver) Apply(t driver.Tree, layer io.Reader, warn func(string)) error {
	return oci.Apply(layer, d.path(t.ID), oci.Options{Whole: true, Warn: warn})
}

// Commit implements driver.Driver.
func (d *Driver) Commit(from, to driver.Tree) error {
	return d.inHome(func(home int) error { return d.keep.clone(home, from.ID, to.ID) })
}

// Remove implements driver.Driver.
func (d *Driver) Remove(id string) error {
	return d.inHome(func(home int) error { return d.keep.remove(home, id) })
}

// Compare implements driver.Driver.
func (d *Driver) Compare(t driver.Tree, use func(branches.Comparison) error) error {
	cmp := branches.Comparison{Whole: true, OneFS: true, Uppers: []string{d.path(t.ID)}}
	if parent, ok := t.Parent(); ok {
		cmp.Lowers = []string{d.path(parent.ID)}
	}
	return use(cmp)
}

// Direct implements driver.Driver.
func (d *Driver) Direct(t driver.Tree) string { return d.path(t.ID) }

// Release implements driver.Driver.
func (d *Driver) Release(driver.Tree) error { return nil }

// Source implements driver.Driver.
func (d *Driver) Source(t driver.Tree) (driver.Source, error) {
	return driver.Source{Dir: d.path(t.ID)}, nil
}

// Mount implements driver.Driver. Only root can bind a directory elsewhere.
func (d *Driver) Mount(t driver.Tree, at string, o driver.Options) error {
	switch err := sys.Bind(d.path(t.ID), at, o.ReadOnly); err {
	case nil:
		return nil
	case unix.EPERM:
		return errs.New(errs.Unsupported, "this user cannot mount on %s: without a directory, the tree is used where it lies", at)
	default:
		return errs.New(errs.Of(err), "mounting on %s: %w", at, err)
	}
}

// Unmount implements driver.Driver.
func (d *Driver) Unmount(_ driver.Tree, at string) error { return driver.Unmount(at) }

// Usage implements driver.Driver.
func (d *Driver) Usage(t driver.Tree) (driver.Usage, error) {
	return driver.DiskUsage(d.path(t.ID), d.keep.exclusive)
}

// Info implements driver.Driver.
func (d *Driver) Info() []driver.Field { return d.keep.info() }
