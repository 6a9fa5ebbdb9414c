package layers

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestUpgrade: a store of version 1 in which a command has died is tidied up as well,
// although nothing there says where to look.
func TestUpgrade(t *testing.T) {
	cfg := Config{Root: filepath.Join(t.TempDir(), "store"), Driver: VFS}
	s, err := Open(cfg)
	require.NoError(t, err)
	whole, err := s.CreateContainer("whole", "", 0)
	require.NoError(t, err)
	half, err := s.CreateContainer("half", "", 0)
	require.NoError(t, err)
	layer := &Layer{ID: newID(), Tree: newTree(), State: making}
	require.NoError(t, s.index.update(func(t txn) error {
		half.State = making
		s.meta.Version = 1
		for _, err := range []error{t.putContainer(half), t.putLayer(layer), t.put(metaBucket, metaKey, s.meta), t.tx.DeleteBucket(unfinishedBucket)} {
			if err != nil {
				return err
			}
		}
		return nil
	}))

	s, err = Open(cfg)
	require.NoError(t, err)
	require.Equal(t, formatVersion, s.meta.Version)
	trees, err := os.ReadDir(filepath.Join(cfg.Root, VFS))
	require.NoError(t, err)
	require.Len(t, trees, 1)
	require.Equal(t, whole.Tree, trees[0].Name())
	require.NoError(t, s.index.view(func(txn txn) error {
		left := 0
		require.NoError(t, txn.unfinished(func(_, _ []byte) error { left++; return nil }))
		require.Zero(t, left)
		found, err := txn.get(layerBucket, []byte(layer.ID), layer)
		require.False(t, found)
		return err
	}))
	list, err := s.Containers()
	require.NoError(t, err)
	require.Len(t, list, 1)
}
