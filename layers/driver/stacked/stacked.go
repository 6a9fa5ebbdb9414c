// Package stacked keeps trees as branches on each other: the drivers overlay,
// which has the kernel mount them, and union, which has layerfs do it.
//
// # On disk
//
//	HOME/ID/diff     the branch: what the tree changes, whiteouts in the overlay dialect
//	HOME/ID/work     the work directory of mounts
//	HOME/empty       the lower of trees that stand on nothing
//
// Both drivers have the same files, so what one has made the other can mount.
// Lists of lowers that are too long for old kernels are the mounter's business
// (kernelbackend.MountOverlay has short names for them).
package stacked

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/oci"
	"github.com/layerfs/layerfs/whiteout"
)

// Stack is what a mounter mounts.
type Stack struct {
	Lowers      []string // top first, at least one
	Upper, Work string
	UserXattr   bool // records of overlay are in user. instead of trusted.
	driver.Options
}

// Mounter makes mounts of stacks.
type Mounter interface {
	Mount(s Stack, at string) error
	// Unmount returns when nothing is held any more.
	Unmount(at string) error
	Info(d *Driver) []driver.Field
}

// Driver is a driver.Driver.
type Driver struct {
	home      string
	mounter   Mounter
	userXattr bool
}

// New returns the driver whose files are in home, which is made when it is not there.
func New(home string, m Mounter) (*Driver, error) {
	d := &Driver{home: home, mounter: m}
	for _, dir := range []string{home, d.path("empty")} {
		if err := sys.MakeDirs(dir, 0755); err != nil {
			return nil, err
		}
	}
	var err error
	d.userXattr, err = needsUser(d.path("empty"))
	return d, err
}

// needsUser reports whether this user may not keep records in trusted.: he is not
// root, or only that of a user namespace.
func needsUser(dir string) (bool, error) {
	fd, err := sys.OpenRoot(dir)
	if err != nil {
		return false, err
	}
	defer sys.Close(fd)
	// It stays: several commands may try at once.
	return sys.SetXattr(fd, "", string(whiteout.Trusted)+"layerfs.probe", []byte("y"), 0) != nil, nil
}

// UserXattr reports whether records of overlay are kept in user.
func (d *Driver) UserXattr() bool { return d.userXattr }

// Home is where the trees are.
func (d *Driver) Home() string { return d.home }

func (d *Driver) path(elem ...string) string {
	return filepath.Join(append([]string{d.home}, elem...)...)
}

func (d *Driver) diff(id string) string { return d.path(id, "diff") }

// Create implements driver.Driver. Nothing is copied but the attributes of the root.
func (d *Driver) Create(t driver.Tree) error {
	if err := d.makeDirs(t.ID); err != nil {
		return err
	}
	parent, ok := t.Parent()
	if !ok {
		return nil
	}
	if err := driver.CopyRoot(d.diff(parent.ID), d.diff(t.ID)); err != nil {
		return fmt.Errorf("attributes of the root: %w", err)
	}
	return nil
}

func (d *Driver) makeDirs(id string) error {
	home, err := sys.OpenRoot(d.home)
	if err != nil {
		return err
	}
	defer sys.Close(home)
	if err := sys.Mkdir(home, id, 0755); err != nil {
		return err
	}
	tree, err := sys.OpenDir(home, id)
	if err != nil {
		return err
	}
	defer sys.Close(tree)
	if err := errors.Join(sys.Mkdir(tree, "diff", 0755), sys.Mkdir(tree, "work", 0700)); err != nil {
		return err
	}
	return sys.ChmodAt(tree, "diff", 0755) // whatever the umask
}

// Apply implements driver.Driver.
func (d *Driver) Apply(t driver.Tree, layer io.Reader, warn func(string)) error {
	return oci.Apply(layer, d.diff(t.ID), oci.Options{Dialect: "overlay", Warn: warn})
}

// Commit implements driver.Driver. The layer is written and read again, so that
// what is in it does not depend on how the tree came about.
func (d *Driver) Commit(from, to driver.Tree) error {
	if err := d.Create(to); err != nil {
		return err
	}
	ignore := func(string) {} // sockets, which mean nothing without who listens
	return d.Compare(from, func(cmp branches.Comparison) error {
		return driver.Transfer(cmp, ignore, func(layer io.Reader) error { return d.Apply(to, layer, ignore) })
	})
}

// Remove implements driver.Driver.
func (d *Driver) Remove(id string) error { return driver.RemoveAll(d.home, id) }

// Compare implements driver.Driver.
func (d *Driver) Compare(t driver.Tree, use func(branches.Comparison) error) error {
	cmp := branches.Comparison{Uppers: []string{d.diff(t.ID)}}
	for _, id := range t.Below {
		cmp.Lowers = append(cmp.Lowers, d.diff(id))
	}
	return use(cmp)
}

// Direct implements driver.Driver.
func (d *Driver) Direct(driver.Tree) string { return "" }

// Source implements driver.Driver.
func (d *Driver) Source(t driver.Tree) (driver.Source, error) {
	s := driver.Source{Upper: d.diff(t.ID), Work: d.path(t.ID, "work"), UserXattr: d.userXattr}
	for _, id := range t.Below {
		s.Lowers = append(s.Lowers, d.diff(id))
	}
	if len(s.Lowers) == 0 {
		s.Lowers = []string{d.path("empty")}
	}
	return s, nil
}

// Release implements driver.Driver.
func (d *Driver) Release(driver.Tree) error { return nil }

// Mount implements driver.Driver.
func (d *Driver) Mount(t driver.Tree, at string, o driver.Options) error {
	src, err := d.Source(t)
	if err != nil {
		return err
	}
	s := Stack{Lowers: src.Lowers, Upper: src.Upper, Work: src.Work, UserXattr: d.userXattr, Options: o}
	return d.mounter.Mount(s, at)
}

// Unmount implements driver.Driver.
func (d *Driver) Unmount(_ driver.Tree, at string) error { return d.mounter.Unmount(at) }

// Usage implements driver.Driver.
func (d *Driver) Usage(t driver.Tree) (driver.Usage, error) {
	return driver.DiskUsage(d.diff(t.ID), nil)
}

// Info implements driver.Driver.
func (d *Driver) Info() []driver.Field { return d.mounter.Info(d) }

// Dirs returns how many trees there are, as aufs's info called them.
func (d *Driver) Dirs() int {
	entries, _ := os.ReadDir(d.home)
	n := 0
	for _, e := range entries {
		if e.Name() != "empty" {
			n++
		}
	}
	return n
}
