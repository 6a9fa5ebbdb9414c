package resources

import (
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// An inode that the kernel remembers costs the daemon little, and nothing
// once it is forgotten.
func TestWalk(t *testing.T) {
	n := size(1000000, 50000)
	e := harness.New(t)
	plant(t, e.P("l"), n, false)
	require.NoError(t, os.Mkdir(e.P("l2/warm"), 0755))
	plant(t, e.P("l2/warm"), 1000, false)
	m := e.Mount("lowerdir=" + e.P("l") + ":" + e.P("l2") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w"))
	walk(t, m.P("warm")) // buffers and stacks are no inodes
	before, known := rss(t, m.Pid), nodes(t, m)

	require.Equal(t, n+1000, walk(t, m.Point))
	grown, inodes := rss(t, m.Pid)-before, nodes(t, m)-known
	t.Logf("%d inodes: %d bytes each, %d descriptors", inodes, grown/inodes, fds(t, m.Pid))
	require.GreaterOrEqual(t, inodes, n, "the kernel has forgotten some already")
	require.LessOrEqual(t, grown/inodes, size(700, 1000), "bytes per inode") // the daemon's own share is larger in the short form
	require.LessOrEqual(t, fds(t, m.Pid), cachedDirs+fewFds)

	if !harness.Root() {
		t.Log("root alone can have the kernel forget inodes")
		return
	}
	forget(t, m)
	if !harness.Full() { // too little to tell from what Go's runtime keeps for itself
		return
	}
	// The collector runs every two minutes if nothing else is the matter.
	start, left := time.Now(), 0
	ok := harness.Eventually(5*time.Minute, func() bool {
		left = rss(t, m.Pid) - before
		return left*10 <= grown
	})
	t.Logf("%d %% of %d bytes given back after %v", 100-100*left/grown, grown, time.Since(start).Round(time.Second))
	require.True(t, ok, "%d of %d bytes are not given back", left, grown)

	// How much of the garbage of the walk before is still there differs from
	// walk to walk, the most of it must not.
	var peaks []int
	for i := 0; i < 10; i++ {
		walk(t, m.Point)
		peaks = append(peaks, rss(t, m.Pid))
		forget(t, m)
	}
	t.Logf("resident after each walk: %v", peaks)
	require.LessOrEqual(t, slices.Max(peaks[5:]), slices.Max(peaks[:5])*105/100, "memory grows from walk to walk: %v", peaks)
}

// forget has the kernel forget all inodes and waits until the daemon has done
// so too. Again, but not at once: one that is in use at the moment stays, and
// the whole machine has to look everything up anew.
func forget(t *testing.T, m *harness.Mount) {
	t.Helper()
	few := func() bool { return nodes(t, m) < 10 }
	for i := 0; i < 20; i++ {
		require.NoError(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
		if harness.Eventually(3*time.Second, few) {
			return
		}
	}
	t.Fatalf("%d inodes are known after the kernel has forgotten them", nodes(t, m))
}

// Directories that come and go leave nothing (fuse-overlayfs #210 leaked a
// descriptor each).
func TestMkdirRmdir(t *testing.T) {
	n := size(262144, 5000)
	e := harness.New(t).Tree("l", "d/")
	m := e.Mount(e.RW())
	p := m.P("d")
	pass := func(n int) {
		for i := 0; i < n; i++ {
			d := p + "/" + strconv.Itoa(i%100)
			require.NoError(t, os.Mkdir(d, 0755))
			require.NoError(t, os.Remove(d))
		}
	}
	pass(size(20000, 1000)) // until the heap has its size
	open, mem := fds(t, m.Pid), rss(t, m.Pid)
	pass(n)
	t.Logf("descriptors %d, then %d; resident %d, then %d", open, fds(t, m.Pid), mem, rss(t, m.Pid))
	require.InDelta(t, open, fds(t, m.Pid), 8, "descriptors")
	// Buffers and garbage come and go, most under load: with 20,000 and with
	// 262,144 it has been 99 and 69 MB. A leak of 300 bytes each would be seen.
	require.LessOrEqual(t, rss(t, m.Pid), 128<<20)
	require.LessOrEqual(t, nodes(t, m), 110)
}
