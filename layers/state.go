package layers

import (
	"bytes"
	"encoding/json"

	"github.com/layerfs/layerfs/layers/driver"
)

// driverState implements driver.State.
type driverState struct{ index index }

func (s driverState) View(fn func(driver.Records) error) error {
	return s.index.view(func(t txn) error { return fn(driverRecords{t}) })
}

func (s driverState) Update(fn func(driver.Records) error) error {
	return s.index.update(func(t txn) error { return fn(driverRecords{t}) })
}

type driverRecords struct{ t txn }

func (r driverRecords) Get(key string, into any) (bool, error) {
	return r.t.get(driverBucket, []byte(key), into)
}
func (r driverRecords) Put(key string, value any) error {
	return r.t.put(driverBucket, []byte(key), value)
}
func (r driverRecords) Delete(key string) error { return r.t.delete(driverBucket, []byte(key)) }

func (r driverRecords) Each(prefix string, fn func(key string, value json.RawMessage) error) error {
	b := r.t.tx.Bucket(driverBucket)
	if b == nil {
		return nil
	}
	c := b.Cursor()
	for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
		if err := fn(string(k), append(json.RawMessage{}, v...)); err != nil {
			return err
		}
	}
	return nil
}
