package crash

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// TestCopiesAreOrdered: see the package comment.
func TestCopiesAreOrdered(t *testing.T) {
	harness.RequireRoot(t)
	for _, fs := range journaled {
		t.Run(fs.name, func(t *testing.T) {
			harness.RequireTool(t, "mkfs."+fs.name, fs.pkg)
			copyAndCut(t, newDisk(t, fs.mkfs))
		})
	}
}

// copyAndCut copies files up from a lower on the disk and from one elsewhere, cuts the
// power, and compares the copies.
func copyAndCut(t *testing.T, d *disk) {
	d.Sh("mkdir -p fs/l/same l/other fs/u fs/w")
	content := map[string]string{}
	for i := range 100 {
		addLower(t, d.P("fs", "l"), fmt.Sprintf("same/%d", i), content)
		addLower(t, d.P("l"), fmt.Sprintf("other/%d", i), content)
	}
	at, err := unix.Open(d.P("fs"), unix.O_RDONLY, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Syncfs(at))
	m := d.Mount(fmt.Sprintf("lowerdir=%s:%s,upperdir=%s,workdir=%s", d.P("fs", "l"), d.P("l"), d.P("fs", "u"), d.P("fs", "w")))
	for name := range content {
		require.NoError(t, os.Chmod(d.P("m", name), 0600))
	}
	commit(t, d.P("fs", "commit"))
	d.powerOff(at, m, func() {})

	renamed := 0
	for name, want := range content {
		got, err := os.ReadFile(d.P("fs", "u", name))
		if os.IsNotExist(err) {
			continue
		}
		require.NoError(t, err)
		renamed++
		if string(got) != want {
			t.Errorf("%s: of the copy's %d bytes %d are right, out of %d", name, len(got), same(string(got), want), len(want))
		}
	}
	require.NotZero(t, renamed, "no copy has survived: nothing was tried")
}

// addLower makes a file of some KiB, none of them zeros, below dir.
func addLower(t testing.TB, dir, name string, content map[string]string) {
	b := make([]byte, 1+rand.IntN(60000))
	for i := range b {
		b[i] = byte(1 + rand.IntN(255))
	}
	content[name] = string(b)
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0644))
}

// commit has the file system's journal written by making a file, which is no business of
// the union, durable.
func commit(t testing.TB, path string) {
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Sync())
}

// same counts the bytes in which a and b agree.
func same(a, b string) int {
	n := 0
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			n++
		}
	}
	return n
}
