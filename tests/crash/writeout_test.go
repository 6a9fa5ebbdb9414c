package crash

import (
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// TestCopyIsWritten: see the package comment.
func TestCopyIsWritten(t *testing.T) {
	harness.RequireRoot(t)
	for _, c := range []struct{ name, tool, args, pkg, call string }{
		{"ext4", "mkfs.ext4", "-q -F", "e2fsprogs", "sync_file_range"},
		{"ext4 without a journal", "mkfs.ext4", "-q -F -O ^has_journal", "e2fsprogs", "fdatasync"},
		{"xfs", "mkfs.xfs", "-q -f", "xfsprogs", "sync_file_range"},
		{"btrfs", "mkfs.btrfs", "-q -f", "btrfs-progs", "fdatasync"},
	} {
		t.Run(c.name, func(t *testing.T) {
			harness.RequireTool(t, c.tool, c.pkg)
			failToWrite(t, newDisk(t, c.tool+" "+c.args), c.call)
		})
	}
}

// failToWrite looks which call has the data of a copy written, and makes it fail.
func failToWrite(t *testing.T, d *disk, call string) {
	plan := d.Plan()
	d.Sh("mkdir -p l fs/u fs/w; for i in 1 2 3; do echo content > l/$i; done")
	m := d.Mount("lowerdir=" + d.P("l") + ",upperdir=" + d.P("fs", "u") + ",workdir=" + d.P("fs", "w"))
	chmod := func(name string) error { return os.Chmod(d.P("m", name), 0600) }
	require.NoError(t, chmod("1"))

	plan.Fails(1000, unix.EIO, false) // only counts
	require.NoError(t, chmod("2"))
	calls := plan.Ops(plan.Disarm())
	at := 1 + slices.Index(calls, call)
	require.NotZero(t, at, "calls of a copy-up: %v", calls)

	plan.Fails(at, unix.EIO, false)
	require.ErrorIs(t, chmod("3"), unix.EIO)
	plan.Disarm()
	require.NoFileExists(t, d.P("fs", "u", "3"))
	left, err := os.ReadDir(d.P("fs", "w", "work"))
	require.NoError(t, err)
	require.Empty(t, left)
	st, err := os.Stat(d.P("m", "3"))
	require.NoError(t, err)
	require.EqualValues(t, 0644, st.Mode())

	require.NoError(t, chmod("3"), "the disk is well again")
	m.Unmount()
}
