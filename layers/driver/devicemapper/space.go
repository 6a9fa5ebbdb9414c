package devicemapper

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/driver/devices"
)

// metadataBlock is the unit of a pool's metadata, in bytes.
const metadataBlock = 4096

// Space implements devices.Pool.
func (p *Pool) Space() (devices.Space, error) {
	s, err := p.dm.Pool(p.name)
	if err != nil {
		return devices.Space{}, err
	}
	b := p.opts.BlockSize
	space := devices.Space{
		BlockSize: b,
		DataUsed:  s.DataUsed * b, DataTotal: s.DataTotal * b, DataAvailable: (s.DataTotal - s.DataUsed) * b,
		MetadataUsed: s.MetaUsed * metadataBlock, MetadataTotal: s.MetaTotal * metadataBlock, MetadataAvailable: (s.MetaTotal - s.MetaUsed) * metadataBlock,
	}
	if p.kind == loopKind { // the files are sparse: the host may have less
		var st unix.Statfs_t
		if err := unix.Statfs(p.home, &st); err != nil {
			return space, err
		}
		host := int64(st.Bavail) * st.Bsize
		space.DataAvailable = min(space.DataAvailable, host)
		space.MetadataAvailable = min(space.MetadataAvailable, host)
	}
	return space, nil
}

// Resize implements devices.Pool, as Docker's device_tool did: the files of loop-lvm
// only grow.
func (p *Pool) Resize(size int64) error {
	return p.locked(func() error { return p.resize(size) })
}

func (p *Pool) resize(size int64) error {
	if p.kind != loopKind {
		return errs.New(errs.Unsupported, "devmapper: only a pool of loop files can be resized: this one is LVM's or somebody else's (lvextend)")
	}
	fi, err := os.Stat(p.data)
	if err != nil {
		return err
	}
	if size < fi.Size() {
		return errs.New(errs.Usage, "devmapper: Can't shrink file")
	}
	if err := sys.Step("truncate"); err != nil {
		return err
	}
	if err := os.Truncate(p.data, size); err != nil {
		return err
	}
	dev, err := loopOf(p.data)
	if err != nil {
		return err
	}
	if err := sys.LoopGrow(dev); err != nil {
		return err
	}
	data, bytes, err := number(dev, false)
	if err != nil {
		return err
	}
	meta, _, err := number(p.meta, true)
	if err != nil {
		return err
	}
	bytes -= bytes % p.opts.BlockSize
	return p.dm.Reload(p.name, "thin-pool", p.poolTable(meta, data), bytes)
}

// Name implements devices.Pool.
func (p *Pool) Name() string { return p.name }

// Files implements devices.Pool.
func (p *Pool) Files() []driver.Field {
	data, meta := p.data, p.meta
	if p.kind == loopKind {
		data, meta = attachedLoop(data), attachedLoop(meta)
	}
	return []driver.Field{{Name: "Data file", Value: data}, {Name: "Metadata file", Value: meta}}
}

// Conditions implements devices.Pool.
func (p *Pool) Conditions() []driver.Field {
	list := []driver.Field{
		{Name: "Udev Sync Supported", Value: "true"}, // nobody waits for udev here
		{Name: "Deferred Removal Enabled", Value: strconv.FormatBool(p.opts.DeferredRemoval)},
		{Name: "Deferred Deletion Enabled", Value: strconv.FormatBool(p.opts.DeferredDeletion)},
		{Name: "Deferred Deleted Device Count", Value: strconv.Itoa(p.deferredCount())},
	}
	if p.kind == loopKind {
		list = append(list,
			driver.Field{Name: "Data loop file", Value: p.data},
			driver.Field{Name: "Metadata loop file", Value: p.meta})
	}
	return append(list, driver.Field{Name: "Library Version", Value: "dm ioctl"})
}

// Warnings implements devices.Pool, in Docker's words.
func (p *Pool) Warnings() []string {
	if p.kind != loopKind {
		return nil
	}
	return []string{"Usage of loopback devices is strongly discouraged for production use. Please use `--storage-opt dm.thinpooldev` or `--storage-opt dm.directlvm_device`"}
}

// deactivate takes the pool out of device-mapper and its files off their loop devices.
// Precondition: no device of it is active.
func (p *Pool) deactivate() error {
	if p.kind != loopKind && p.kind != deviceKind {
		return nil
	}
	err := p.dm.Remove(p.name, false)
	for _, file := range []string{p.data, p.meta} {
		if dev := attachedLoop(file); dev != "" && p.kind == loopKind {
			err = errors.Join(err, sys.LoopDetach(dev))
		}
	}
	return err
}

// Stop ends the pool: whoever opens the store next activates it again.
func (p *Pool) Stop() error {
	names, err := p.dm.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasPrefix(n, p.prefix+"-") && n != p.name {
			if err := p.dm.Remove(n, false); err != nil {
				return err
			}
		}
	}
	return p.deactivate()
}
