package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// What a walk will come to is looked at ahead. What has changed until it comes there
// is shown as it is then.
func TestWalkSeesWhatChangedMeanwhile(t *testing.T) {
	e := harness.New(t)
	for _, dir := range []string{"a/b/c", "a/b/d/e", "a/b/f"} {
		for i := range 5 {
			e.Tree("l", fmt.Sprintf("%s/f%d=%d", dir, i, i))
		}
	}
	e.Tree("l", "a/b/linked=1\na/b/f/linked=>a/b/linked")
	m := e.Mount(e.RW())
	for _, dir := range []string{"", "a", "a/b"} { // a walk as far as here
		_, err := os.ReadDir(m.P(dir))
		require.NoError(t, err)
	}
	time.Sleep(300 * time.Millisecond) // the rest is looked at
	require.NoError(t, os.Remove(m.P("a/b/c/f0")))
	require.NoError(t, os.Chmod(m.P("a/b/c/f1"), 0600))
	require.NoError(t, os.WriteFile(m.P("a/b/c/new"), []byte("new"), 0644))
	require.NoError(t, os.Rename(m.P("a/b/c/f2"), m.P("a/b/c/f9")))
	require.NoError(t, os.WriteFile(m.P("a/b/d/e/f1"), []byte("longer"), 0644))
	require.NoError(t, os.WriteFile(m.P("a/b/linked"), []byte("other"), 0644)) // a name that was looked at is another's too

	seen := map[string]os.FileInfo{}
	require.NoError(t, filepath.Walk(m.P("a/b"), func(p string, info os.FileInfo, err error) error {
		seen[p[len(m.P("a/b")):]] = info
		return err
	}))
	require.NotContains(t, seen, "/c/f0")
	require.NotContains(t, seen, "/c/f2")
	require.Contains(t, seen, "/c/f9")
	require.EqualValues(t, 0600, seen["/c/f1"].Mode())
	require.EqualValues(t, 3, seen["/c/new"].Size())
	require.EqualValues(t, 6, seen["/d/e/f1"].Size())
	require.EqualValues(t, 5, seen["/f/linked"].Size())
	require.Equal(t, harness.Stat(t, m.P("a/b/linked")).Ino, harness.Stat(t, m.P("a/b/f/linked")).Ino)
	require.Len(t, seen, 22)
}
