package main

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/client"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/driver/devices"
)

// thinHouse implements devices.House for the block store of the driver thin.
type thinHouse struct{}

// Data implements devices.House.
func (thinHouse) Data(home string) string { return filepath.Join(home, "pool", "data") }

// Export implements devices.House. The pool refuses changes from now on.
func (thinHouse) Export(home string, _ driver.State, xml string) (list []devices.Tenant, err error) {
	f, err := os.Create(xml)
	if err != nil {
		return nil, err
	}
	pool := filepath.Join(home, "pool")
	err = withPool(pool, func(c *client.Client) error {
		all, err := c.Devices()
		if err != nil {
			return err
		}
		for _, d := range all {
			list = append(list, devices.Tenant{Name: d.Name, ID: d.ID, Size: d.Size})
		}
		return c.Dump(f, true)
	})
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	unlock, err := stopPool(pool) // nobody has the data file open then
	if err != nil {
		return nil, err
	}
	unlock()
	return list, nil
}

// Import implements devices.House.
func (h thinHouse) Import(home, data, xml string, tenants []devices.Tenant) (map[string]any, error) {
	if _, err := os.Stat(h.Data(home)); err == nil {
		return nil, nil
	}
	pool := filepath.Dir(h.Data(home))
	if err := errors.Join(os.RemoveAll(pool), os.MkdirAll(home, 0700)); err != nil {
		return nil, err
	}
	side := &blockstore.Sidecar{}
	for _, t := range tenants {
		side.Devices = append(side.Devices, blockstore.SidecarDevice{ID: t.ID, Name: t.Name, Size: t.Size})
	}
	f, err := os.Open(xml)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return nil, blockstore.Restore(pool, data, f, side)
}
