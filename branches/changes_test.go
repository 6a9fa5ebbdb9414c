package branches

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestChanges(t *testing.T) {
	low := tree(t, "keep", "edit", "gone", "dir/a", "dir/b", "typ", "same/x")
	up := tree(t, "edit", "gone=char", "dir/.wh.a", "dir/new", "typ/", "typ/in", "fresh/deep/f", "same/")
	fi, err := os.Stat(filepath.Join(low, "same"))
	require.NoError(t, err)
	require.NoError(t, os.Chtimes(filepath.Join(up, "same"), fi.ModTime(), fi.ModTime()))
	require.NoError(t, os.Mkdir(filepath.Join(up, "opq"), 0755))
	require.NoError(t, os.Mkdir(filepath.Join(low, "opq"), 0755))
	require.NoError(t, os.WriteFile(filepath.Join(low, "opq/old"), nil, 0644))
	require.NoError(t, unix.Lsetxattr(filepath.Join(up, "opq"), "user.overlay.opaque", []byte("y"), 0))
	var got []string
	require.NoError(t, Changes(up, []string{low}, func(kind byte, path string) error {
		got = append(got, string(kind)+" "+path)
		return nil
	}))
	require.Equal(t, []string{
		"C /dir", "D /dir/a", "A /dir/new", "C /edit", "A /fresh", "A /fresh/deep", "A /fresh/deep/f",
		"D /gone", "C /opq", "D /opq/old", "C /typ", "A /typ/in",
	}, got)
}
