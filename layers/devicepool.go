package layers

import (
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/layers/driver/devices"
)

// devices returns the driver if it is one that has a pool.
func (s *Store) devices() (*devices.Driver, error) {
	d, ok := s.driver.(*devices.Driver)
	if !ok {
		return nil, errs.New(errs.Unsupported, "driver %s has no pool: this is for devicemapper and thin", s.meta.Driver)
	}
	return d, nil
}

// ResizePool makes the pool of the store's devices larger: size is in bytes. Who waits
// for space goes on.
func (s *Store) ResizePool(size int64) error {
	d, err := s.devices()
	if err != nil {
		return err
	}
	return d.Pool().Resize(size)
}

// Deactivate takes the pool and its devices out of the kernel, until the store is opened
// again: to unmount or move what it lies on. Nothing of it may be mounted.
func (s *Store) Deactivate() error {
	d, err := s.devices()
	if err != nil {
		return err
	}
	if err := s.idle(); err != nil {
		return err
	}
	return d.Stop()
}

// idle refuses while a container is mounted.
func (s *Store) idle() error {
	containers, err := s.Containers()
	if err != nil {
		return err
	}
	for _, c := range containers {
		if at := s.Mounted(c); at != "" {
			return errs.New(errs.Busy, "container %s is mounted on %s: unmount it first", c.Name, at)
		}
	}
	return nil
}
