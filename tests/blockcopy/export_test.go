package blockcopy

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// holed changes the file in all ways that a device's record must know of.
func (r *rig) holed() {
	r.t.Helper()
	r.write("big", []byte("changed"), 5*block+9)
	f, err := os.OpenFile(r.m.P("big"), os.O_RDWR, 0)
	require.NoError(r.t, err)
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	require.NoError(r.t, unix.Fallocate(int(f.Fd()), punch, 2*block+5, 2*block))
	clear(r.model[2*block+5 : 4*block+5])
	cut := len(r.model) - 3*block - 77
	require.NoError(r.t, f.Truncate(int64(cut)))
	require.NoError(r.t, f.Truncate(int64(len(r.model))))
	clear(r.model[cut:])
	require.NoError(r.t, f.Close())
	r.same("big")
}

// The pool shows the device, over its lower file, as a file and by NBD.
func TestPoolShows(t *testing.T) {
	r := newRig(t, mib)
	r.holed()
	r.m.Unmount()
	r.launcherGone()
	name := r.devices()[0].Name
	require.NoError(t, os.Mkdir(r.P("pm"), 0755))
	res := r.Layerfs("pool", "mount", r.pool(), r.P("pm"))
	require.Zero(t, res.Code, res.Stderr)
	got, err := os.ReadFile(r.P("pm", name))
	require.NoError(t, err)
	requireSame(t, r.model, got, "through pool mount")
	require.NoError(t, os.WriteFile(r.P("x"), []byte("by the pool"), 0644))
	r.Sh("dd if=x of=pm/" + name + " bs=1 seek=300 conv=notrunc status=none; fusermount3 -u pm")
	copy(r.model[300:], "by the pool")
	require.True(t, harness.Eventually(10*time.Second, func() bool { return r.poolProcess() == 0 }))
	r.m = r.Mount(r.opts)
	r.same("big")
}

// What is dumped for dm-thin has blocks for zeros and for what is cut off.
func TestDump(t *testing.T) {
	r := newRig(t, mib)
	r.holed()
	r.m.Unmount()
	before := r.devices()[0].Mapped
	res := r.Layerfs("pool", "dump", r.pool())
	require.Zero(t, res.Code, res.Stderr)
	after := r.devices()[0].Mapped
	require.Greater(t, after, before)
	mappings := strings.Count(res.Stdout, "<single_mapping") + strings.Count(res.Stdout, "<range_mapping")
	require.NotZero(t, mappings)
	// Blocks: 2, 3 and 4 for the hole, 5 that was changed, and the last four.
	require.EqualValues(t, 8*block, after)
	r.m = r.Mount(r.opts)
	r.same("big")
}
