package devicemapper

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/layers/driver"
)

// records implements driver.State and driver.Records in memory.
type records map[string]json.RawMessage

func (r records) View(fn func(driver.Records) error) error   { return fn(r) }
func (r records) Update(fn func(driver.Records) error) error { return fn(r) }
func (r records) Delete(key string) error                    { delete(r, key); return nil }

func (r records) Get(key string, into any) (bool, error) {
	v, ok := r[key]
	if !ok {
		return false, nil
	}
	return true, json.Unmarshal(v, into)
}

func (r records) Put(key string, value any) (err error) {
	r[key], err = json.Marshal(value)
	return err
}

func (r records) Each(prefix string, fn func(string, json.RawMessage) error) error {
	for _, key := range slices.Sorted(maps.Keys(r)) {
		if strings.HasPrefix(key, prefix) {
			if err := fn(key, r[key]); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestMarkAll: records of before there were marks get them, for the devices that somebody
// was at only.
func TestMarkAll(t *testing.T) {
	r := records{
		"pool":          json.RawMessage(`{"kind":"loop","block":65536,"txid":7,"next":4}`),
		"device/base":   json.RawMessage(`{"id":0,"size":1}`),
		"device/half":   json.RawMessage(`{"id":1,"size":1,"state":"making","txid":8}`),
		"device/gone":   json.RawMessage(`{"id":2,"size":1,"state":"deferred"}`),
		"device/intact": json.RawMessage(`{"id":3,"size":1}`),
	}
	p := &Pool{state: r}
	var pool made
	_, err := r.Get(poolKey, &pool)
	require.NoError(t, err)
	require.False(t, pool.Marked)
	require.NoError(t, p.markAll(&pool))
	var marks []string
	require.NoError(t, r.Each(markPrefix, func(key string, _ json.RawMessage) error { marks = append(marks, key); return nil }))
	require.Equal(t, []string{"unfinished/gone", "unfinished/half"}, marks)
	require.Equal(t, 1, p.deferredCount())
	_, err = r.Get(poolKey, &pool)
	require.NoError(t, err)
	require.Equal(t, made{Kind: loopKind, Block: 65536, Txid: 7, Next: 4, Marked: true}, pool)
}
