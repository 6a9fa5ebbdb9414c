package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/client"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/fusedev"
	"github.com/layerfs/layerfs/internal/mounts"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/driver/devices"
)

// thinPool is the pool of a store with the driver thin: HOME/pool, whose devices are
// files in HOME/devices while one of them is attached.
type thinPool struct {
	pool, files string
	opts        devices.Options
}

// openThinPool opens the pool in home, or makes it.
func openThinPool(home string, o devices.Options) (devices.Pool, error) {
	if o.ThinpoolDev != "" || o.DataDev != "" || o.DirectLVMDevice != "" {
		return nil, errs.New(errs.Usage, "dm.thinpooldev, dm.datadev and dm.directlvm_device are for the driver devicemapper: the driver thin has a data file of its own")
	}
	p := &thinPool{filepath.Join(home, "pool"), filepath.Join(home, "devices"), o}
	if err := os.MkdirAll(p.files, 0700); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(p.pool, "data")); err == nil {
		return p, nil
	}
	return p, p.create()
}

// create makes the pool, under another name until it is complete.
func (p *thinPool) create() error {
	tmp := p.pool + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	size := p.opts.LoopDataSize
	err := blockstore.Create(tmp, blockstore.Options{
		DataSize: size, BlockSize: int(p.opts.BlockSize), LowWater: uint64(size / p.opts.BlockSize / 10),
		NoSpaceTimeout: time.Minute, NoDiscardPassdown: !p.opts.BlkDiscard,
	})
	if err != nil {
		return err
	}
	return os.Rename(tmp, p.pool)
}

// Make implements devices.Pool.
func (p *thinPool) Make(name string, size int64) error {
	return withPool(p.pool, func(c *client.Client) error {
		_, err := c.Create(blockstore.NewDevice{Name: name, Size: size})
		return err
	})
}

// Snapshot implements devices.Pool.
func (p *thinPool) Snapshot(origin, name string, size int64) error {
	return withPool(p.pool, func(c *client.Client) error {
		_, err := c.Create(blockstore.NewDevice{Name: name, Of: origin, Size: size})
		return err
	})
}

// Grow implements devices.Pool.
func (p *thinPool) Grow(name string, size int64) error {
	return withPool(p.pool, func(c *client.Client) error { return c.Resize(name, size) })
}

// letGoTime is how long a device may take to be let go after it was unmounted: the
// kernel takes its loop device away in its own time.
const letGoTime = 10 * time.Second

// Remove implements devices.Pool.
func (p *thinPool) Remove(name string) error {
	return withPool(p.pool, func(c *client.Client) error {
		for until := time.Now().Add(letGoTime); ; time.Sleep(10 * time.Millisecond) {
			err := c.Delete(name)
			switch {
			case errors.Is(err, unix.ENODATA) || errs.Of(err) == errs.NotFound:
				return nil
			case errs.Of(err) == errs.Busy && time.Now().Before(until):
			default:
				return err
			}
		}
	})
}

// Attach implements devices.Pool.
func (p *thinPool) Attach(name string) (string, error) {
	if _, ok, err := mounts.On(p.files); err != nil || ok {
		return p.Path(name), err
	}
	cmd := exec.Command("/proc/self/exe", "pool", "mount", p.pool, p.files)
	cmd.Args[0] = os.Args[0]
	if out, err := cmd.CombinedOutput(); err != nil {
		said := strings.TrimPrefix(strings.TrimSpace(string(out)), "layerfs: ")
		return "", errs.New(errs.Class(max(cmd.ProcessState.ExitCode(), int(errs.Failed))), "the devices of %s cannot be shown: %s", p.pool, said)
	}
	return p.Path(name), nil
}

// Path implements devices.Pool.
func (p *thinPool) Path(name string) string { return filepath.Join(p.files, name) }

// Detach implements devices.Pool. The files go with the last that is in use.
func (p *thinPool) Detach(string) error {
	if _, ok, err := mounts.On(p.files); err != nil || !ok {
		return err
	}
	if err := fusedev.Unmount(p.files, false); err != nil && errs.Of(err) != errs.Busy {
		return err
	}
	return nil
}

// Size implements devices.Pool.
func (p *thinPool) Size(name string) (size int64, err error) {
	err = withPool(p.pool, func(c *client.Client) error {
		d, err := c.Device(name)
		size = d.Size
		return err
	})
	return size, err
}

// Usage implements devices.Pool.
func (p *thinPool) Usage(name, parent string) (n int64, err error) {
	err = withSettled(p.pool, func(c *client.Client) error {
		delta, err := c.Delta(parent, name)
		if err != nil {
			return err
		}
		s, err := c.Status()
		for _, d := range delta {
			if d.Kind == "right_only" || d.Kind == "different" {
				n += int64(d.Length) * s.BlockSize
			}
		}
		return err
	})
	return n, err
}

// Space implements devices.Pool. The index grows as it must: its total is what a
// dm-thin pool of this size would have for metadata.
func (p *thinPool) Space() (space devices.Space, err error) {
	err = withSettled(p.pool, func(c *client.Client) error {
		s, err := c.Status()
		if err != nil {
			return err
		}
		space = devices.Space{
			BlockSize: s.BlockSize,
			DataUsed:  int64(s.Used) * s.BlockSize, DataTotal: int64(s.Blocks) * s.BlockSize, DataAvailable: int64(s.Available) * s.BlockSize,
			MetadataUsed: s.IndexBytes, MetadataTotal: s.MetadataTotal(), MetadataAvailable: s.HostFree,
		}
		return nil
	})
	return space, err
}

// Resize implements devices.Pool.
func (p *thinPool) Resize(size int64) error {
	return withPool(p.pool, func(c *client.Client) error { return c.Grow(size) })
}

// Name implements devices.Pool. It is made as Docker made it.
func (p *thinPool) Name() string {
	var st unix.Stat_t
	if err := unix.Stat(p.pool, &st); err != nil {
		return filepath.Base(p.pool)
	}
	return fmt.Sprintf("layerfs-%d:%d-%d-pool", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino)
}

// Files implements devices.Pool.
func (p *thinPool) Files() []driver.Field {
	return []driver.Field{
		{Name: "Data file", Value: filepath.Join(p.pool, "data")},
		{Name: "Metadata file", Value: filepath.Join(p.pool, "index")},
	}
}

// Conditions implements devices.Pool.
func (p *thinPool) Conditions() []driver.Field {
	return []driver.Field{
		{Name: "Udev Sync Supported", Value: "true"}, // there is nothing to be out of step with
		{Name: "Deferred Removal Enabled", Value: strconv.FormatBool(p.opts.DeferredRemoval)},
		{Name: "Deferred Deletion Enabled", Value: strconv.FormatBool(p.opts.DeferredDeletion)},
		{Name: "Deferred Deleted Device Count", Value: "0"},
		{Name: "Library Version", Value: versionString()},
	}
}

// Warnings implements devices.Pool.
func (p *thinPool) Warnings() []string { return nil }

// Stop implements devices.Pool. What nobody uses is gone already.
func (p *thinPool) Stop() error { return p.Detach("") }

// Close implements devices.Pool.
func (p *thinPool) Close() error { return nil }
