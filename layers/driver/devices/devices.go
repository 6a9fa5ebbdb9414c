package devices

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/internal/units"
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
	for _, dir := range []string{"mnt", "kept"} {
		if err := sys.MakeDirs(filepath.Join(home, dir), 0700); err != nil {
			return nil, err
		}
	}
	d := &Driver{home: home, pool: pool, opts: o}
	d.fs = fileSystems{o: &d.opts, kernel: os.Geteuid() == 0 && !sys.InUserNamespace()}
	return d, d.openBase()
}

// Pool is where the driver has its devices.
func (d *Driver) Pool() Pool { return d.pool }

func (d *Driver) point(id string) string { return filepath.Join(d.home, "mnt", id) }

// Create implements driver.Driver. On a base device that has grown, so has the tree.
func (d *Driver) Create(t driver.Tree) error {
	base, err := d.pool.Size(baseName)
	if err != nil {
		return err
	}
	return d.create(t, base)
}

// CreateSized implements driver.Sized.
func (d *Driver) CreateSized(t driver.Tree, size int64) error {
	_, least, err := d.origin(t)
	if err != nil {
		return err
	}
	if size < least {
		return errs.New(errs.Usage, "devmapper: Container size cannot be smaller than %s", units.Decimal(least))
	}
	return d.create(t, size)
}

// origin returns the device of which that of t is a snapshot, and its size in bytes.
func (d *Driver) origin(t driver.Tree) (name string, size int64, err error) {
	name = baseName
	if parent, ok := t.Parent(); ok {
		name = parent.ID
	}
	size, err = d.pool.Size(name)
	return name, size, err
}

// create makes a tree that is size bytes large, or as large as what it stands on if
// that is larger.
func (d *Driver) create(t driver.Tree, size int64) error {
	if err := d.checkFree(); err != nil {
		return err
	}
	origin, has, err := d.origin(t)
	if err != nil {
		return err
	}
	if err := d.pool.Snapshot(origin, t.ID, max(size, has)); err != nil || size <= has {
		return err
	}
	return d.locked(func() error {
		at := d.point(t.ID)
		if err := sys.MakeDirs(at, 0700); err != nil {
			return err
		}
		path, err := d.pool.Attach(t.ID)
		if err == nil {
			err = d.fs.grow(path, at)
		}
		return errors.Join(err, sys.RemovePath(at), d.pool.Detach(t.ID))
	})
}

// Commit implements driver.Driver: by a snapshot, or, where the device does not have
// everything that was written, by what the tree shows.
func (d *Driver) Commit(from, to driver.Tree) error {
	if err := d.checkFree(); err != nil {
		return err
	}
	complete, err := d.flush(from.ID)
	if err != nil {
		return err
	}
	size, err := d.pool.Size(from.ID)
	if err != nil {
		return err
	}
	if !complete {
		return d.copyChanges(from, to, size)
	}
	return d.pool.Snapshot(from.ID, to.ID, size)
}

func (d *Driver) copyChanges(from, to driver.Tree, size int64) error {
	if err := d.create(to, size); err != nil {
		return err
	}
	ignore := func(string) {} // sockets, which mean nothing without who listens
	return d.Compare(from, func(cmp branches.Comparison) error {
		return driver.Transfer(cmp, ignore, func(layer io.Reader) error { return d.Apply(to, layer, ignore) })
	})
}

// flush brings what was written into a tree, if it is mounted, to its device. false: not
// all of it is there.
func (d *Driver) flush(id string) (complete bool, err error) {
	at, _ := d.mounted(id)
	if at == "" {
		return true, nil
	}
	return d.fs.flush(at)
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
	return d.with(t.ID, func(root string) error {
		return oci.Apply(layer, root, oci.Options{Whole: true, Warn: warn})
	})
}

// Remove implements driver.Driver.
func (d *Driver) Remove(id string) error {
	if err := d.letGo(id); err != nil {
		return err
	}
	return d.pool.Remove(id)
}

// Compare implements driver.Driver.
func (d *Driver) Compare(t driver.Tree, use func(branches.Comparison) error) error {
	return d.with(t.ID, func(root string) error {
		cmp := branches.Comparison{Whole: true, Uppers: []string{root}}
		parent, ok := t.Parent()
		if !ok {
			return use(cmp)
		}
		return d.with(parent.ID, func(old string) error {
			cmp.Lowers = []string{old}
			return use(cmp)
		})
	})
}

// Direct implements driver.Driver.
func (d *Driver) Direct(driver.Tree) string { return "" }

// Usage implements driver.Driver. Inodes are the file system's business.
func (d *Driver) Usage(t driver.Tree) (driver.Usage, error) {
	if _, err := d.flush(t.ID); err != nil {
		return driver.Usage{}, err
	}
	parent := baseName
	if p, ok := t.Parent(); ok {
		parent = p.ID
	}
	var n int64
	err := d.locked(func() (err error) { n, err = d.pool.Usage(t.ID, parent); return err }) // which may attach them
	return driver.Usage{Bytes: n}, err
}
