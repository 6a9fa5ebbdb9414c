package driver

import "encoding/json"

// State is where a driver keeps records of its own: in the index of the store, so that
// they are on disk when Update returns, all or none.
type State interface {
	View(fn func(Records) error) error
	Update(fn func(Records) error) error
}

// Records are values by key; a value is JSON.
type Records interface {
	Get(key string, into any) (bool, error)
	Put(key string, value any) error
	Delete(key string) error
	// Each calls fn for every record whose key begins with prefix, in order of the keys.
	// fn may not change records.
	Each(prefix string, fn func(key string, value json.RawMessage) error) error
}
