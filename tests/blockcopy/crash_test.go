package blockcopy

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// The pool process is killed again and again under writers, who notice nothing.
func TestPoolKilled(t *testing.T) {
	const files, size = 3, 4 * mib
	r := newRig(t, mib)
	var models [files][]byte
	for i := range files {
		models[i] = noise(uint64(10+i), size)
		require.NoError(t, os.WriteFile(r.P("l", fmt.Sprint("f", i)), models[i], 0644))
	}
	var stop atomic.Bool
	var group sync.WaitGroup
	var failed atomic.Value
	for i := range files {
		group.Go(func() {
			f, err := os.OpenFile(r.m.P(fmt.Sprint("f", i)), os.O_RDWR, 0)
			if err != nil {
				failed.Store(err)
				return
			}
			defer f.Close()
			rnd := rand.New(rand.NewPCG(uint64(i), 7))
			for !stop.Load() {
				if err := change(f, &models[i], rnd); err != nil {
					failed.Store(err)
					return
				}
			}
		})
	}
	kills := 0
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(time.Duration(50+rand.IntN(200)) * time.Millisecond) {
		if pid := r.poolProcess(); pid != 0 {
			require.NoError(t, unix.Kill(pid, unix.SIGKILL))
			kills++
		}
	}
	stop.Store(true)
	group.Wait()
	require.Nil(t, failed.Load(), "%v", r.status().Troubles)
	t.Logf("%d kills", kills)
	require.Greater(t, kills, 5)
	for round := range 2 {
		for i := range files {
			got, err := os.ReadFile(r.m.P(fmt.Sprint("f", i)))
			require.NoError(t, err)
			requireSame(t, models[i], got, fmt.Sprintf("f%d, round %d", i, round))
		}
		r.remount()
	}
	r.m.Unmount()
	r.launcherGone()
	res := r.Layerfs("pool", "check", r.pool())
	require.Zero(t, res.Code, "%s%s", res.Stdout, res.Stderr)
}

// change changes a file and its model at random.
func change(f *os.File, model *[]byte, rnd *rand.Rand) error {
	m := *model
	off := rnd.IntN(len(m))
	n := 1 + rnd.IntN(3*block)
	switch rnd.IntN(12) {
	case 0:
		end := min(off+n, len(m))
		clear(m[off:end])
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(end-off))
	case 1:
		size := max(len(m)-n, mib)
		*model = m[:size]
		return f.Truncate(int64(size))
	case 2:
		return f.Sync()
	case 3:
		off = len(m)
		*model = append(m, make([]byte, n)...)
	default:
		n = min(n, len(m)-off)
	}
	data := noise(rnd.Uint64(), n)
	copy((*model)[off:], data)
	_, err := f.WriteAt(data, int64(off))
	return err
}

// What fsync has returned for is there after both processes were killed.
func TestSyncedSurvives(t *testing.T) {
	r := newRig(t, 4*mib)
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 5 {
		f, err := os.OpenFile(r.m.P("big"), os.O_RDWR, 0)
		require.NoError(t, err)
		for range 10 {
			require.NoError(t, change(f, &r.model, rnd))
		}
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
		r.killPool()
		r.killDaemon()
		r.same("big")
	}
}

const schema = `CREATE TABLE t(id INTEGER PRIMARY KEY, round INTEGER, pad BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d)
INSERT INTO t SELECT i, 0, randomblob(4000) FROM n;`

// A database in a lower, updated in transactions while the daemon and the pool
// process are killed in turn: no committed transaction is missing.
func TestDatabase(t *testing.T) {
	harness.RequireTool(t, "python3", "python3")
	kills := harness.Setting("LAYERFS_TEST_KILLS", 6)
	r := newRig(t, mib)
	db := r.P("l", "data.db")
	rows := harness.Setting("LAYERFS_TEST_DB", 16) * mib / 4096
	r.python("make", db, fmt.Sprintf(schema, rows))
	base := 0
	for i := range kills {
		u := r.update(base, rows)
		u.first(t)
		time.Sleep(time.Duration(150+rand.IntN(350)) * time.Millisecond)
		if i%2 == 0 {
			for range 3 { // the daemon goes on, and so does the database
				r.killPool()
				time.Sleep(100 * time.Millisecond)
			}
			u.end()
		} else {
			require.NoError(t, unix.Kill(r.m.Pid, unix.SIGKILL))
		}
		last := u.wait()
		if i%2 == 1 {
			r.m.Died()
			require.True(t, harness.Eventually(5*time.Second, func() bool { return !harness.Alive(r.m.Pid) }))
			harness.Detach(t, r.m.Point)
			r.m = r.Mount(r.opts)
		}
		base = r.check(last)
	}
	t.Logf("%d transactions, %d kills", base, kills)
}

// check examines the database, in which transaction last was committed, and
// returns the last that is there.
func (r *rig) check(last int) (found int) {
	r.t.Helper()
	out := r.python("check", r.m.P("data.db"), "")
	_, err := fmt.Sscan(out, &found)
	require.NoError(r.t, err, out)
	require.GreaterOrEqual(r.t, found, last, "a committed transaction is missing")
	return found
}

func (r *rig) python(args ...string) string {
	r.t.Helper()
	res := r.Cmd(nil, "python3", append([]string{"-c", databaseScript}, args...)...)
	require.Zero(r.t, res.Code, "%s%s", res.Stdout, res.Stderr)
	return res.Stdout
}

// Each transaction sets a stretch of rows to its number, so that a part of one
// can be told from the whole.
const databaseScript = `
import os, sqlite3, sys
what, path, arg = sys.argv[1:4]
db = sqlite3.connect(path, isolation_level=None, timeout=60)
db.execute("PRAGMA synchronous=" + os.environ.get("SYNC", "FULL"))
if what == "make":
    db.executescript(arg)
elif what == "update":
    n, rows = int(arg), int(sys.argv[4])
    while True:
        n += 1
        first = n * 7919 % rows
        db.execute("BEGIN IMMEDIATE")
        for i in range(5):
            db.execute("UPDATE t SET round=?, pad=randomblob(4000) WHERE id=?", (n, (first + i * 131) % rows + 1))
        db.execute("COMMIT")
        print(n, flush=True)
else:
    ok = db.execute("PRAGMA integrity_check").fetchall()
    assert ok == [("ok",)], ok
    last = db.execute("SELECT max(round) FROM t").fetchone()[0]
    whole = db.execute("SELECT count(*) FROM t WHERE round=?", (last,)).fetchone()[0]
    assert last == 0 or whole == 5, (last, whole)
    print(last)
`

// The same over power cuts, simulated by shutting the file system down.
func TestPowerCut(t *testing.T) {
	harness.RequireRoot(t)
	harness.RequireTool(t, "python3", "python3")
	cuts := harness.Setting("LAYERFS_TEST_CUTS", 2)
	for _, fs := range []struct{ name, mkfs, pkg string }{
		{"ext4", "mkfs.ext4 -q -F", "e2fsprogs"}, {"xfs", "mkfs.xfs -q -f", "xfsprogs"},
	} {
		t.Run(fs.name, func(t *testing.T) {
			harness.RequireTool(t, "mkfs."+fs.name, fs.pkg)
			e := harness.New(t)
			// FULL does not sync the directory that the journal is deleted in.
			t.Setenv("SYNC", "EXTRA")
			e.Sh("truncate -s 600M img; " + fs.mkfs + " img; mkdir fs")
			mount := func() { e.Sh("mount -o loop img fs") }
			unmount := func() {
				require.True(t, harness.Eventually(10*time.Second, func() bool { return unix.Unmount(e.P("fs"), 0) == nil }), "busy")
				// A mount namespace that somebody has made meanwhile may keep it alive.
				require.True(t, harness.Eventually(time.Minute, func() bool { return e.Sh("losetup -j img") == "" }), "the loop device stays")
			}
			mount()
			defer func() { _ = unix.Unmount(e.P("fs"), unix.MNT_DETACH) }()
			e.Sh("mkdir fs/l fs/u fs/w")
			r := &rig{Env: e, t: t}
			rows := 8 * mib / 4096
			r.python("make", e.P("fs", "l", "data.db"), fmt.Sprintf(schema, rows))
			e.Sh("sync")
			r.opts = fmt.Sprintf("lowerdir=%s/l,upperdir=%s/u,workdir=%s/w,%s", e.P("fs"), e.P("fs"), e.P("fs"), forced)
			r.m = r.Mount(r.opts)
			base := 0
			for range cuts {
				last := r.updateUntil(base, rows, func() {
					at, err := unix.Open(e.P("fs"), unix.O_RDONLY, 0)
					require.NoError(t, err)
					require.NoError(t, unix.IoctlSetPointerInt(at, 0x8004587d, 2)) // FS_IOC_SHUTDOWN, without a flush of the log
					unix.Close(at)
				})
				require.NoError(t, unix.Kill(r.m.Pid, unix.SIGKILL))
				for _, pid := range harness.Daemons(e.P("fs", "u", ".wh..wh.layerfs", "pool")) {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
				r.m.Died()
				require.True(t, harness.Eventually(5*time.Second, func() bool { return !harness.Alive(r.m.Pid) }))
				harness.Detach(t, r.m.Point)
				unmount()
				mount()
				r.m = r.Mount(r.opts)
				base = r.check(last)
			}
			t.Logf("%d transactions, %d cuts", base, cuts)
			r.m.Unmount()
			unmount()
		})
	}
}

// updater is a process that updates the database.
type updater struct {
	cmd  *exec.Cmd
	last atomic.Int64 // the last transaction that was committed
	done chan struct{}
}

// update starts to update the database, whose last transaction is base.
func (r *rig) update(base, rows int) *updater {
	t := r.t
	u := &updater{done: make(chan struct{})}
	u.last.Store(int64(base))
	u.cmd = exec.Command("python3", "-c", databaseScript, "update", r.m.P("data.db"), fmt.Sprint(base), fmt.Sprint(rows))
	out, err := u.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, u.cmd.Start())
	go func() {
		defer close(u.done)
		for {
			var n int64
			if _, err := fmt.Fscan(out, &n); err != nil {
				return
			}
			u.last.Store(n)
		}
	}()
	return u
}

// first waits for the first transaction.
func (u *updater) first(t *testing.T) {
	base := u.last.Load()
	require.True(t, harness.Eventually(time.Minute, func() bool { return u.last.Load() > base }), "no transaction is committed")
}

func (u *updater) end() { _ = u.cmd.Process.Kill() }

// wait waits for the end and returns the last transaction.
func (u *updater) wait() int {
	<-u.done
	_ = u.cmd.Wait()
	return int(u.last.Load())
}

// updateUntil updates the database for a while, calls end, and returns the last
// transaction that was committed before.
func (r *rig) updateUntil(base, rows int, end func()) int {
	u := r.update(base, rows)
	u.first(r.t)
	time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond)
	// What xfs syncs of a directory after its shutdown succeeds.
	committed := int(u.last.Load())
	end()
	u.end()
	u.wait()
	return committed
}
