package blockstore

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/internal/errs"
)

type nobody struct{}

func (nobody) Settle(uint32) error { return nil }
func (nobody) Drop(uint32)         {}
func (nobody) GiveBack()           {}

// Mappings, a snapshot and a deletion survive being closed and opened.
func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "p")
	require.NoError(t, Create(dir, Options{DataSize: 64 << 20}))
	p, err := Open(dir)
	require.NoError(t, err)
	require.NoError(t, p.Message("create_thin 0"))
	o := nobody{}
	g, err := p.Reserve(t.Context(), o, 3)
	require.NoError(t, err)
	require.Len(t, g, 3)
	require.True(t, g[0].Zero)
	err = p.Assign(0, o, []Assignment{{7, g[0].Block}, {300, g[1].Block}})
	require.NoError(t, err)
	require.NoError(t, p.Message("create_snap 1 0"))
	require.NoError(t, p.Audit())
	require.NoError(t, p.Close())
	p, err = Open(dir)
	require.NoError(t, err)
	l, err := p.Leaf(1, 0)
	require.NoError(t, err)
	require.True(t, l.Entries[7].HasData())
	require.False(t, l.Entries[7].Exclusive())
	require.NoError(t, p.Message("delete 0"))
	l, err = p.Leaf(1, 0)
	require.NoError(t, err)
	require.True(t, l.Entries[7].Exclusive())
	s := p.Status()
	require.EqualValues(t, 2, s.Used)
	t.Log(s.DM())
	require.NoError(t, p.Close())
	r, err := Check(dir, false)
	require.NoError(t, err)
	require.Empty(t, r.Problems)
}

func TestPoolOfAnotherVersion(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "p")
	require.NoError(t, Create(dir, Options{DataSize: 64 << 20}))
	idx, err := openIndex(dir, false)
	require.NoError(t, err)
	raw, err := idx.get(superKey)
	require.NoError(t, err)
	sb, err := decodeSuper(raw)
	require.NoError(t, err)
	sb.Format = poolFormat + 1
	require.NoError(t, idx.commit(nil, []record{encodeJSON(superKey, sb)}))
	require.NoError(t, idx.close())
	_, err = Open(dir)
	require.ErrorContains(t, err, "the pool has format 2, this program knows 1")
	require.Equal(t, errs.Unsupported, errs.Of(err))
}
