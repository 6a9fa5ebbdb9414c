package union

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// binary is the program under test.
var binary string

func TestMain(m *testing.M) {
	syscall.Umask(022)
	dir := ""
	if binary = os.Getenv("LAYERFS_BIN"); binary == "" {
		dir, _ = os.MkdirTemp("/var/tmp", "layerfs-test-bin-")
		os.Chmod(dir, 0755)
		binary = filepath.Join(dir, "layerfs")
		build := exec.Command("go", "build", "-o", binary, "../../cmd/layerfs")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building layerfs: %v\n%s", err, out)
			os.Exit(1)
		}
	}
	code := m.Run()
	if dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// skip skips the test, or fails it where nothing may be left out.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("LAYERFS_TEST_STRICT") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root")
	}
}

func needFUSE(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		skip(t, "needs /dev/fuse: %v", err)
	}
	f.Close()
}

// box is a directory with the usual places for one test.
type box struct {
	t     *testing.T
	dir   string
	lower string
	upper string
	work  string
	mnt   string
}

func newBox(t *testing.T) *box {
	t.Helper()
	needFUSE(t)
	base := os.Getenv("LAYERFS_TEST_DIR")
	if base == "" {
		base = "/var/tmp" // a real file system, which /tmp need not be
	}
	dir, err := os.MkdirTemp(base, "layerfs-test-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0755))
	b := &box{t: t, dir: dir, lower: dir + "/lower", upper: dir + "/upper", work: dir + "/work", mnt: dir + "/mnt"}
	for _, d := range []string{b.lower, b.upper, b.work, b.mnt} {
		require.NoError(t, os.Mkdir(d, 0755))
	}
	t.Cleanup(b.clean)
	return b
}

func (b *box) clean() {
	for _, m := range mountsBelow(b.dir) {
		b.t.Errorf("%s is still mounted", m)
		unmount(m)
	}
	if err := os.RemoveAll(b.dir); err != nil {
		b.t.Errorf("cleaning up: %v", err)
	}
}

// mountsBelow lists mount points below dir, the last mounted first.
func mountsBelow(dir string) (out []string) {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append([]string{f[4]}, out...)
		}
	}
	return out
}

// options returns the three directories and extra as one option string.
func (b *box) options(extra ...string) string {
	o := []string{"lowerdir=" + b.lower, "upperdir=" + b.upper, "workdir=" + b.work}
	if forced := harness.MountOptions(); forced != "" {
		extra = append(extra, forced)
	}
	return strings.Join(append(o, extra...), ",")
}

// mount mounts the box's branches and returns what ends the mount; the end
// of the test does too. With it go the checks that nothing is left behind.
func (b *box) mount(extra ...string) (umount func()) {
	b.t.Helper()
	return b.mountWith(b.options(extra...), b.mnt)
}

func (b *box) mountWith(options, mnt string) (umount func()) {
	b.t.Helper()
	out, err := runFor(10*time.Second, binary, "-o", options, mnt)
	require.NoError(b.t, err, out)
	pid := daemonOf(mnt)
	require.NotZero(b.t, pid, "no daemon serves %s", mnt)
	done := false
	umount = func() {
		if done {
			return
		}
		done = true
		if err := unmount(mnt); err != nil {
			b.t.Errorf("unmounting: %v", err)
			unix.Unmount(mnt, unix.MNT_DETACH)
		}
		harness.WaitGone(b.t, pid, mnt)
		_, work, _ := strings.Cut(options, "workdir=")
		work, _, _ = strings.Cut(work, ",")
		if left, _ := os.ReadDir(work + "/work"); work != "" && len(left) > 0 {
			b.t.Errorf("the work directory is not empty: %v", left)
		}
	}
	b.t.Cleanup(umount)
	return umount
}

// runFor runs a command with its output caught, and ends it after d.
func runFor(d time.Duration, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	timer := time.AfterFunc(d, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	return out.String(), err
}

func unmount(mnt string) error {
	var err error
	for i := 0; i < 20; i++ {
		if err = unix.Unmount(mnt, 0); err == nil {
			return nil
		}
		if err == unix.EPERM {
			out, ferr := runFor(10*time.Second, "fusermount3", "-u", mnt)
			if ferr == nil {
				return nil
			}
			err = fmt.Errorf("%v: %s", ferr, out)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// daemonOf returns the process whose last argument is mnt.
func daemonOf(mnt string) int {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		data, _ := os.ReadFile(p)
		args := strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
		if len(args) > 1 && args[len(args)-1] == mnt && strings.Contains(args[0], "layerfs") {
			var pid int
			fmt.Sscanf(p, "/proc/%d/", &pid)
			if !isGone(pid) {
				return pid
			}
		}
	}
	return 0
}

// isGone reports whether a process has ended; one that nobody has reaped counts as ended.
func isGone(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// put makes files below dir from "path=content" (a file), "path/" (a
// directory), "path->target" (a symbolic link), "path%" (a whiteout device).
func put(t *testing.T, dir string, specs ...string) {
	t.Helper()
	for _, s := range specs {
		name, content, isFile := strings.Cut(s, "=")
		link, target, isLink := strings.Cut(s, "->")
		switch {
		case isLink && !isFile:
			mkParent(t, dir, link)
			require.NoError(t, os.Symlink(target, filepath.Join(dir, link)))
		case isFile:
			mkParent(t, dir, name)
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0644))
		case strings.HasSuffix(s, "%"):
			mkParent(t, dir, s)
			require.NoError(t, unix.Mknod(filepath.Join(dir, strings.TrimSuffix(s, "%")), unix.S_IFCHR, 0))
		default:
			require.NoError(t, os.MkdirAll(filepath.Join(dir, s), 0755))
		}
	}
}

func mkParent(t *testing.T, dir, name string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0755))
}

// dump describes a tree, a line for each name in order: type, mode, links of
// files, content or target. Owners and times are left to tests of their own.
func dump(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if rel == "." {
			return nil
		}
		fmt.Fprintf(&b, "%s %v", rel, fi.Mode())
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if len(data) > 40 {
				data = append(data[:40], fmt.Sprintf("…%d", fi.Size())...)
			}
			fmt.Fprintf(&b, " links=%d %q", fi.Sys().(*syscall.Stat_t).Nlink, data)
		case fi.Mode()&os.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			fmt.Fprintf(&b, " %s", target)
		}
		b.WriteString("\n")
		return nil
	})
	require.NoError(t, err)
	return b.String()
}

// ls lists the names in dir.
func ls(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0644))
}

func stat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	require.NoError(t, syscall.Lstat(path, &st))
	return &st
}

// namespace is where this user can keep overlay's attributes.
func namespace() string {
	if os.Geteuid() == 0 {
		return "trusted."
	}
	return "user."
}
