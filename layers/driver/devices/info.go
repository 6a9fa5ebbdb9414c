package devices

import (
	"github.com/layerfs/layerfs/internal/units"
	"github.com/layerfs/layerfs/layers/driver"
)

// Info implements driver.Driver: what `docker info` printed of devicemapper, in its order.
func (d *Driver) Info() []driver.Field {
	s, err := d.pool.Space()
	if err != nil {
		return []driver.Field{{Name: "Pool Name", Value: d.pool.Name()}, {Name: "WARNING", Value: err.Error()}}
	}
	list := []driver.Field{
		{Name: "Pool Name", Value: d.pool.Name()},
		{Name: "Pool Blocksize", Value: units.Decimal(s.BlockSize)},
		{Name: "Base Device Size", Value: units.Decimal(d.opts.BaseSize)},
		{Name: "Backing Filesystem", Value: d.opts.FS},
	}
	list = append(list, d.pool.Files()...)
	list = append(list,
		driver.Field{Name: "Data Space Used", Value: units.Decimal(s.DataUsed)},
		driver.Field{Name: "Data Space Total", Value: units.Decimal(s.DataTotal)},
		driver.Field{Name: "Data Space Available", Value: units.Decimal(s.DataAvailable)},
		driver.Field{Name: "Metadata Space Used", Value: units.Decimal(s.MetadataUsed)},
		driver.Field{Name: "Metadata Space Total", Value: units.Decimal(s.MetadataTotal)},
		driver.Field{Name: "Metadata Space Available", Value: units.Decimal(s.MetadataAvailable)},
		driver.Field{Name: "Thin Pool Minimum Free Space", Value: units.Decimal(d.minimumFree(s))},
	)
	return append(list, d.pool.Conditions()...)
}

// minimumFree is what dm.min_free_space keeps free, in bytes of data.
func (d *Driver) minimumFree(s Space) int64 {
	if d.opts.MinFreeSpacePercent == 0 {
		return 0
	}
	return max(s.DataTotal/s.BlockSize*int64(d.opts.MinFreeSpacePercent)/100, 1) * s.BlockSize
}
