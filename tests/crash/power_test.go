package crash

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// journaled are the file systems on which the power is cut.
var journaled = []struct{ name, mkfs, pkg string }{
	{"ext4", "mkfs.ext4 -q -F", "e2fsprogs"}, {"xfs", "mkfs.xfs -q -f", "xfsprogs"},
}

const (
	fsIocShutdown = 0x8004587d // FS_IOC_SHUTDOWN
	noLogFlush    = 2          // what is not on disk yet, the journal included, is lost

	workers = 4
	files   = 12 // of each worker, in the lower
)

// TestPowerCut: see the package comment.
func TestPowerCut(t *testing.T) {
	harness.RequireRoot(t)
	cuts := harness.Setting("LAYERFS_TEST_CUTS", 3)
	for _, fs := range journaled {
		t.Run(fs.name, func(t *testing.T) {
			harness.RequireTool(t, "mkfs."+fs.name, fs.pkg)
			d, acked := newDisk(t, fs.mkfs), 0
			for i := range cuts {
				seed := uint64(time.Now().UnixNano())
				t.Logf("cut %d, seed %d", i+1, seed)
				acked += d.cut(fmt.Sprint("c", i), rand.New(rand.NewPCG(seed, 0)))
			}
			t.Logf("%d changes were acknowledged", acked)
			require.NotZero(t, acked)
		})
	}
}

// disk is a file system in a loop device.
type disk struct {
	*harness.Env
	mounted bool
}

func newDisk(t *testing.T, mkfs string) *disk {
	d := &disk{Env: harness.New(t)}
	d.Sh("truncate -s 400M img; " + mkfs + " img; mkdir fs")
	t.Cleanup(func() {
		if d.mounted {
			_ = unix.Unmount(d.P("fs"), unix.MNT_DETACH)
		}
	})
	d.mount()
	return d
}

func (d *disk) mount() {
	d.T.Helper()
	d.Sh("mount -o loop img fs")
	d.mounted = true
}

func (d *disk) unmount() {
	d.T.Helper()
	require.True(d.T, harness.Eventually(10*time.Second, func() bool { return unix.Unmount(d.P("fs"), 0) == nil }), "the file system stays busy")
	d.mounted = false
}

// cut mounts a fresh union, has it changed, cuts the power at some moment, and
// looks what is there after the next start. It returns how many changes had
// been acknowledged.
func (d *disk) cut(name string, rnd *rand.Rand) int {
	t := d.T
	dir := d.P("fs", name)
	for _, sub := range []string{"", "l", "u", "w"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0755))
	}
	var all []*worker
	for i := range workers {
		all = append(all, newWorker(t, filepath.Join(dir, "l"), d.P("m"), fmt.Sprint("d", i), rnd.Uint64()))
	}
	at, err := unix.Open(dir, unix.O_RDONLY, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Syncfs(at))
	opts := fmt.Sprintf("lowerdir=%s/l,upperdir=%s/u,workdir=%s/w", dir, dir, dir)
	m := d.Mount(opts)
	var group sync.WaitGroup
	for _, w := range all {
		group.Go(w.run)
	}
	time.Sleep(time.Duration(20+rnd.IntN(300)) * time.Millisecond)
	for _, w := range all {
		w.cut.Store(true)
	}
	d.powerOff(at, m, group.Wait)
	m = d.Mount(opts)
	steps := 0
	for _, w := range all {
		w.check(t)
		steps += w.steps
	}
	harness.Dump(t, m.Point, harness.DumpOptions{}) // all of it can be read
	m.Unmount()
	d.Sh("rm -rf " + dir)
	return steps
}

// powerOff cuts the power while m, which is on the file system of the descriptor at,
// is mounted, and turns it on again. wait is called when the daemon is dead.
func (d *disk) powerOff(at int, m *harness.Mount, wait func()) {
	t := d.T
	t.Helper()
	require.NoError(t, unix.IoctlSetPointerInt(at, fsIocShutdown, noLogFlush))
	unix.Close(at)
	m.Died()
	require.NoError(t, unix.Kill(m.Pid, unix.SIGKILL))
	wait()
	harness.Detach(t, m.Point)
	require.True(t, harness.Eventually(5*time.Second, func() bool { return !harness.Alive(m.Pid) }))
	d.unmount()
	d.mount()
}

// worker changes files of its own and notes what was acknowledged.
type worker struct {
	*rand.Rand
	root  string // in the mount
	dir   string
	acked map[string]string   // path below root: content that must be there; absent is ""
	maybe map[string][]string // what the change under way may make of a path instead
	steps int
	cut   atomic.Bool // the power goes just now
}

func newWorker(t testing.TB, lower, root, dir string, seed uint64) *worker {
	w := &worker{Rand: rand.New(rand.NewPCG(seed, 0)), root: root, dir: dir, acked: map[string]string{}}
	require.NoError(t, os.Mkdir(filepath.Join(lower, dir), 0755))
	for i := range files {
		p := fmt.Sprintf("%s/low%d", dir, i)
		content := strings.Repeat(fmt.Sprintf("%s of old. ", p), 1+w.IntN(3000))
		require.NoError(t, os.WriteFile(filepath.Join(lower, p), []byte(content), 0644))
		w.acked[p] = content
	}
	return w
}

// run goes on until the power is cut. An fsync that returns while that happens
// has acknowledged nothing: with no power there would be nobody to return to,
// and here the file system may tell it that the journal is written when it was
// not.
func (w *worker) run() {
	for w.step() == nil && !w.cut.Load() {
		for p, c := range w.maybe {
			w.acked[p] = c[len(c)-1]
		}
		w.maybe = nil
		w.steps++
	}
}

// step makes one change durable. w.maybe tells all contents that a path may
// have if the change is interrupted, the one that it leads to last.
func (w *worker) step() error {
	p := fmt.Sprintf("%s/low%d", w.dir, w.IntN(files))
	old := w.acked[p]
	fresh := fmt.Sprintf("%s/new%d-%d", w.dir, w.steps, w.IntN(1000))
	switch k := w.IntN(8); {
	case k == 0 || old == "": // a new file
		content := strings.Repeat("new. ", 1+w.IntN(2000))
		w.maybe = map[string][]string{fresh: {"*", content}}
		return w.write(fresh, os.O_CREATE|os.O_EXCL, content, 0)
	case k == 1: // rename
		w.maybe = map[string][]string{p: {old, ""}, fresh: {"", old}}
		if err := os.Rename(w.at(p), w.at(fresh)); err != nil {
			return err
		}
		return w.syncDir()
	case k == 2: // delete
		w.maybe = map[string][]string{p: {old, ""}}
		if err := os.Remove(w.at(p)); err != nil {
			return err
		}
		return w.syncDir()
	case k == 3: // replace, as editors do
		content := strings.Repeat("replaced. ", 1+w.IntN(2000))
		w.maybe = map[string][]string{fresh: {"*", ""}, p: {old, content}}
		if err := w.write(fresh, os.O_CREATE|os.O_EXCL, content, 0); err != nil {
			return err
		}
		if err := os.Rename(w.at(fresh), w.at(p)); err != nil {
			return err
		}
		return w.syncDir()
	case k < 6: // a copy-up, and nothing that makes it durable
		w.maybe = map[string][]string{p: {old}}
		return os.Chmod(w.at(p), os.FileMode(0600|w.IntN(0o100)))
	default: // change some bytes within one block, which a disk does not tear
		at := w.IntN(len(old)) &^ 511
		size := 1 + w.IntN(min(512, len(old)-at))
		content := old[:at] + strings.Repeat("X", size) + old[at+size:]
		w.maybe = map[string][]string{p: {old, content}}
		return w.write(p, 0, content[at:at+size], int64(at))
	}
}

func (w *worker) at(p string) string { return filepath.Join(w.root, p) }

// write writes and syncs a file, and the directory of a new one.
func (w *worker) write(p string, flags int, content string, off int64) error {
	f, err := os.OpenFile(w.at(p), os.O_WRONLY|flags, 0644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(content), off); err != nil {
		return err
	}
	if err := f.Sync(); err != nil || flags == 0 {
		return err
	}
	return w.syncDir()
}

func (w *worker) syncDir() error {
	d, err := os.Open(w.at(w.dir))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// check requires that what was acknowledged is there.
func (w *worker) check(t testing.TB) {
	t.Helper()
	for p, want := range w.acked {
		if w.maybe[p] == nil {
			w.checkFile(t, p, []string{want})
		}
	}
	for p, want := range w.maybe {
		w.checkFile(t, p, want)
	}
}

// checkFile requires one of several contents; "*" is any, "" is absence.
func (w *worker) checkFile(t testing.TB, p string, want []string) {
	t.Helper()
	data, err := os.ReadFile(w.at(p))
	if err != nil && !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	for _, c := range want {
		if c == "*" || string(data) == c && os.IsNotExist(err) == (c == "") {
			return
		}
	}
	t.Errorf("%s after %d acknowledged changes: %d bytes, %q (%v), but should be one of %d, the first of %d bytes, %q",
		p, w.steps, len(data), head(string(data)), err, len(want), len(want[0]), head(want[0]))
}

func head(s string) string { return s[:min(len(s), 60)] }
