package pool

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/client"
	"github.com/layerfs/layerfs/tests/harness"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "writers" {
		fmt.Fprintln(os.Stderr, runWriters(os.Args[2:]))
		os.Exit(1)
	}
	harness.Main(m)
}

func cuts(short int) int { return harness.Setting("LAYERFS_TEST_CUTS", short) }

// victim is a pool that is crashed again and again.
type victim struct {
	t   *testing.T
	dir string
	m   *model
	gen int
	rng *rand.Rand
}

func newVictim(t *testing.T, dir string) *victim {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	v := &victim{t: t, dir: dir, m: newModel(), rng: rand.New(rand.NewPCG(seed, 0))}
	// Small memtables, so that they rotate.
	require.NoError(t, blockstore.Create(dir, blockstore.Options{DataSize: 1 << 30, Small: true}))
	c := v.client()
	for i := range writers {
		_, err := c.Create(blockstore.NewDevice{Name: deviceName(i), Size: devUnits * unit})
		require.NoError(t, err)
	}
	require.NoError(t, c.Close())
	v.ended()
	return v
}

func (v *victim) client() *client.Client {
	v.t.Helper()
	c, err := client.Open(v.dir, program(harness.Bin()))
	require.NoError(v.t, err)
	return c
}

// ended waits until no process serves the pool.
func (v *victim) ended() {
	v.t.Helper()
	require.True(v.t, harness.Eventually(10*time.Second, func() bool { return len(harness.Daemons(v.dir)) == 0 }),
		"the pool process does not end")
}

// soon is some moment.
func (v *victim) soon() <-chan time.Time {
	return time.After(time.Duration(30+v.rng.IntN(400)) * time.Millisecond)
}

// rotated is when badger has begun another log, with the last one not yet
// in a table perhaps: what was acknowledged is in both.
func (v *victim) rotated() <-chan time.Time {
	first := ""
	ch := make(chan time.Time, 1)
	go func() {
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			logs, _ := filepath.Glob(filepath.Join(v.dir, "index", "*.mem"))
			if first == "" && len(logs) > 0 {
				first = logs[len(logs)-1]
			}
			if len(logs) > 0 && logs[len(logs)-1] > first {
				ch <- time.Now()
				return
			}
		}
		v.t.Error("the log never rotated")
		ch <- time.Now()
	}()
	return ch
}

// crash starts the writers, lets hit strike them when it is time, and returns
// when nothing of them is left.
func (v *victim) crash(when func() <-chan time.Time, hit func()) {
	t := v.t
	v.gen++
	cmd := exec.Command(os.Args[0], "writers", v.dir, harness.Bin(), fmt.Sprint(v.rng.Uint64()), fmt.Sprint(v.gen))
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = os.Stderr
	if os.Getenv("LAYERFS_TEST_QUIET") == "" {
		cmd.Stderr = io.Discard
	}
	require.NoError(t, cmd.Start())
	lines := make(chan string, 1<<16)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	at := when()
	alive := true
	for alive {
		select {
		case l, ok := <-lines:
			require.True(t, ok, "the writers ended by themselves")
			require.NoError(t, v.m.hear(l, true))
		case <-at:
			alive = false
		}
	}
	hit()
	for _, pid := range append(harness.Daemons(v.dir), cmd.Process.Pid) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	for l := range lines {
		_ = v.m.hear(l, false) // the last line may be cut
	}
	_ = cmd.Wait()
	for _, pid := range harness.Daemons(v.dir) { // one that the writers started while they died
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	v.ended()
}

func (v *victim) verify() {
	v.t.Helper()
	start := time.Now()
	c := v.client()
	require.Less(v.t, time.Since(start), 3*time.Second, "opening after a crash takes too long")
	v.m.verify(v.t, c)
	st, err := c.Status()
	require.NoError(v.t, err)
	require.Equal(v.t, "rw", st.Mode, st.Cause)
	require.NoError(v.t, c.Close())
	v.ended()
}

// TestKilled: see the package comment.
func TestKilled(t *testing.T) {
	e := harness.New(t)
	v := newVictim(t, e.P("pool"))
	for range cuts(8) {
		v.crash(v.soon, func() {})
		v.verify()
	}
	v.finish()
}

// finish checks the pool as a whole.
func (v *victim) finish() {
	v.t.Helper()
	v.t.Logf("%d acknowledged, none lost", v.m.acks)
	require.NotZero(v.t, v.m.acks)
	r, err := blockstore.Check(v.dir, false)
	require.NoError(v.t, err)
	require.Empty(v.t, r.Problems)
	logs, err := filepath.Glob(filepath.Join(v.dir, "index", "*.mem"))
	require.NoError(v.t, err)
	v.t.Logf("logs at the end: %v", logs)
}

const (
	fsIocShutdown = 0x8004587d // FS_IOC_SHUTDOWN
	noLogFlush    = 2          // what is not on disk yet, the journal included, is lost
)

// TestPowerCut: see the package comment.
func TestPowerCut(t *testing.T) {
	harness.RequireRoot(t)
	for _, fs := range []struct{ name, mkfs, pkg string }{
		{"ext4", "mkfs.ext4 -q -F", "e2fsprogs"}, {"xfs", "mkfs.xfs -q -f", "xfsprogs"},
	} {
		t.Run(fs.name, func(t *testing.T) {
			harness.RequireTool(t, "mkfs."+fs.name, fs.pkg)
			e := harness.New(t)
			e.Sh("truncate -s 1200M img; " + fs.mkfs + " img; mkdir fs; mount -o loop img fs")
			t.Cleanup(func() { _ = unix.Unmount(e.P("fs"), unix.MNT_DETACH) })
			v := newVictim(t, e.P("fs", "pool"))
			e.Sh("sync -f fs")
			for i := range cuts(4) {
				when := v.soon
				if i == 0 {
					when = v.rotated
				}
				v.crash(when, func() {
					at, err := unix.Open(v.dir, unix.O_RDONLY, 0)
					require.NoError(t, err)
					defer unix.Close(at)
					require.NoError(t, unix.IoctlSetPointerInt(at, fsIocShutdown, noLogFlush))
				})
				require.True(t, harness.Eventually(10*time.Second, func() bool { return unix.Unmount(e.P("fs"), 0) == nil }))
				e.Sh("mount -o loop img fs")
				v.verify()
			}
			v.finish()
			require.True(t, harness.Eventually(10*time.Second, func() bool { return unix.Unmount(e.P("fs"), 0) == nil }))
		})
	}
}
