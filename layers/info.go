package layers

import (
	"strconv"

	"github.com/layerfs/layerfs/layers/driver"
)

// Info returns what `docker info` printed of a store with this driver, and where it is.
func (s *Store) Info() ([]driver.Field, error) {
	layers, err := s.Layers()
	if err != nil {
		return nil, err
	}
	containers, err := s.Containers()
	if err != nil {
		return nil, err
	}
	list := []driver.Field{
		{Name: "Containers", Value: strconv.Itoa(len(containers))},
		{Name: "Images", Value: strconv.Itoa(len(layers))},
		{Name: "Storage Driver", Value: s.meta.Driver},
	}
	for _, f := range s.driver.Info() {
		list = append(list, driver.Field{Name: " " + f.Name, Value: f.Value})
	}
	return append(list, driver.Field{Name: "Root Dir", Value: s.root}), nil
}

// HowChosen returns what auto found when this process made the store, else nil.
func (s *Store) HowChosen() []Choice { return s.choice }
