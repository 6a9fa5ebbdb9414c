package devices

import "github.com/layerfs/layerfs/layers/driver"

// Tenant is a thin device that moves from one kind of pool to the other.
type Tenant struct {
	Name string `json:"name"`
	ID   uint32 `json:"id"`
	Size int64  `json:"size"` // bytes
}

// House is a kind of pool that stores can move into and out of: the data file stays what it
// is, the metadata goes by the XML of thin_dump and thin_restore.
type House interface {
	// Export stops the pool in home, which is not written to any more, writes its metadata
	// to the file xml, and returns its devices. It may be called again.
	Export(home string, state driver.State, xml string) ([]Tenant, error)

	// Data is where the data file of a pool in home is.
	Data(home string) string

	// Import makes a pool in home of the data file data, which it takes in by renaming it,
	// last of all, and of the metadata in the file xml. It returns what is to be recorded
	// for the driver. When a crash came in between it may be called again.
	Import(home, data, xml string, tenants []Tenant) (records map[string]any, err error)
}
