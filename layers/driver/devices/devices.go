package devices

import (
	"io"
	"os"
	"path/filepath"

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
	for _, dir := range []string{"mnt", "kept"} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0700); err != nil {
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
	if !complete {
		return d.copyChanges(from, to)
	}
	size, err := d.pool.Size(from.ID)
	if err != nil {
		return err
	}
	return d.pool.Snapshot(from.ID, to.ID, size)
}

func (d *Driver) copyChanges(from, to driver.Tree) error {
	if err := d.Create(to); err != nil {
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
	n, err := d.pool.Usage(t.ID, parent)
	return driver.Usage{Bytes: n}, err
}
