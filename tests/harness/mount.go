package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Mount is a live mount.
type Mount struct {
	Env   *Env
	Point string
	Pid   int
	work  string // "" without a work directory
	gone  bool
}

// Mount mounts on m in the drop-in form and fails the test if that fails.
// Several strings become one -o each.
func (e *Env) Mount(opts ...string) *Mount {
	e.T.Helper()
	return e.MountOn(e.P("m"), opts...)
}

// MountOn is Mount with another mountpoint.
func (e *Env) MountOn(point string, opts ...string) *Mount {
	e.T.Helper()
	RequireFUSE(e.T)
	if forced := MountOptions(); forced != "" {
		opts = append(opts, forced)
	}
	var args []string
	for _, o := range opts {
		args = append(args, "-o", o)
	}
	r := e.Layerfs(append(args, point)...)
	require.Zero(e.T, r.Code, "layerfs %s: %s", strings.Join(args, " "), r.Stderr)
	return e.Adopt(point, opts...)
}

// Adopt takes over a mount that somebody else has made on point.
func (e *Env) Adopt(point string, opts ...string) *Mount {
	e.T.Helper()
	require.True(e.T, Mounted(point), "nothing is mounted on %s", point)
	pids := Daemons(point)
	require.Len(e.T, pids, 1, "daemons of %s", point)
	m := &Mount{Env: e, Point: point, Pid: pids[0]}
	for _, o := range strings.Split(strings.Join(opts, ","), ",") {
		if v, ok := strings.CutPrefix(o, "workdir="); ok {
			m.work = v
		}
	}
	e.T.Cleanup(m.Unmount)
	return m
}

// P returns a path in the mount.
func (m *Mount) P(elem ...string) string {
	return filepath.Join(append([]string{m.Point}, elem...)...)
}

// Unmount ends the mount and checks what it leaves. Calling it again does
// nothing, so tests may unmount early.
func (m *Mount) Unmount() {
	t := m.Env.T
	t.Helper()
	if m.gone {
		return
	}
	m.gone = true
	checkDeleted(t, m.Pid)
	if Mounted(m.Point) {
		out, err := unmount(m.Point)
		if err != nil {
			t.Errorf("unmounting %s: %v: %s", m.Point, err, out)
			_ = unix.Unmount(m.Point, unix.MNT_DETACH)
		}
	}
	if WaitGone(t, m.Pid, m.Point); alive(m.Pid) {
		_ = unix.Kill(m.Pid, unix.SIGKILL)
	}
	if Mounted(m.Point) {
		t.Errorf("something is still mounted on %s", m.Point)
	}
	if m.work != "" {
		checkWork(t, m.work)
	}
}

// Remount unmounts and mounts again with the given options: what was kept in
// memory only is gone then.
func (m *Mount) Remount(opts ...string) *Mount {
	m.Env.T.Helper()
	m.Unmount()
	return m.Env.MountOn(m.Point, opts...)
}

// Died says that the test itself has ended the daemon and the mount.
func (m *Mount) Died() { m.gone = true }

func unmount(point string) ([]byte, error) {
	var out []byte
	var err error
	// A mount may be busy for a moment after its last file was closed.
	for i := 0; i < 20; i++ {
		if out, err = exec.Command("fusermount3", "-u", point).CombinedOutput(); err == nil {
			return nil, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return append(out, " in use by "+strings.Join(users(point), ", ")...), err
}

// users lists who has something below point open, as far as we may look.
func users(point string) []string {
	var out []string
	links, _ := filepath.Glob("/proc/[0-9]*/*")
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	maps, _ := filepath.Glob("/proc/[0-9]*/map_files/*")
	for _, l := range append(append(links, fds...), maps...) {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to+"/", point+"/") {
			out = append(out, l+" -> "+to)
		}
	}
	return out
}

func checkWork(t testing.TB, work string) {
	t.Helper()
	if !filepath.IsAbs(work) {
		return
	}
	names, err := os.ReadDir(filepath.Join(work, "work"))
	if err != nil && !os.IsNotExist(err) && !os.IsPermission(err) {
		t.Errorf("work directory: %v", err)
	}
	for _, n := range names {
		t.Errorf("left in the work directory: %s", n.Name())
	}
}

// checkDeleted fails the test when the daemon holds a deleted file open though
// nobody uses the mount any more: a leak of descriptors and disk space.
func checkDeleted(t testing.TB, pid int) {
	t.Helper()
	var left []string
	ok := Eventually(2*time.Second, func() bool {
		left = nil
		for _, f := range OpenFiles(pid) {
			if strings.HasSuffix(f, " (deleted)") {
				left = append(left, f)
			}
		}
		return len(left) == 0
	})
	if !ok {
		t.Errorf("the daemon keeps deleted files open: %s", strings.Join(left, ", "))
	}
}

// OpenFiles returns what the descriptors of a process refer to; nothing when
// we may not look.
func OpenFiles(pid int) []string {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, _ := os.ReadDir(dir)
	var files []string
	for _, n := range names {
		if f, err := os.Readlink(filepath.Join(dir, n.Name())); err == nil {
			files = append(files, f)
		}
	}
	return files
}

// Mounted reports whether something is mounted on point.
func Mounted(point string) bool { return MountInfo(point) != nil }

// MountInfo returns the fields of the topmost mount on point in
// /proc/self/mountinfo, or nil.
func MountInfo(point string) []string {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	var found []string
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 4 && unescape(f[4]) == point {
			found = f
		}
	}
	return found
}

func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Daemons returns the living processes that have arg among their arguments.
func Daemons(arg string) []int {
	var pids []int
	procs, _ := os.ReadDir("/proc")
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", p.Name(), "cmdline")) // a zombie's is empty
		for _, a := range strings.Split(string(line), "\x00") {
			if a == arg {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// alive reports whether a process lives; a zombie that PID 1 has not yet
// reaped does not.
func alive(pid int) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(line) > 0
}

// Alive is alive for tests.
func Alive(pid int) bool { return alive(pid) }

// Moment is what a daemon may take to end.
const Moment = 5 * time.Second

// Eventually waits until cond holds, at most for d.
func Eventually(d time.Duration, cond func() bool) bool {
	for end := time.Now().Add(d); ; time.Sleep(10 * time.Millisecond) {
		if cond() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// Detach takes a mount whose daemon is dead out of the way.
func Detach(t testing.TB, point string) {
	t.Helper()
	out, err := exec.Command("fusermount3", "-u", "-z", point).CombinedOutput()
	require.NoError(t, err, "%s", out)
}
