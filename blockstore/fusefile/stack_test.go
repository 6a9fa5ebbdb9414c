package fusefile

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What people put on top of these files: loop devices, file systems, dd and cp.

// loop attaches a loop device to path until the end of the test, or of detach.
func loop(t *testing.T, path string, options ...string) (dev string, detach func()) {
	t.Helper()
	needRoot(t)
	needTools(t, "losetup", "mkfs.ext4", "fstrim", "e2fsck")
	out, err := exec.Command("losetup", append([]string{"--find", "--show"}, append(options, path)...)...).CombinedOutput()
	if err != nil {
		skip(t, "losetup: ", string(out))
	}
	dev = strings.TrimSpace(string(out))
	attached := true
	detach = func() {
		if attached {
			attached = false
			run(t, "losetup", "--detach", dev)
		}
	}
	t.Cleanup(detach)
	return dev, detach
}

// mountLoop mounts dev on dir until umount or the end of the test.
func mountLoop(t *testing.T, dev, dir string) (umount func()) {
	t.Helper()
	run(t, "mount", "-t", "ext4", dev, dir)
	mounted := true
	umount = func() {
		if mounted {
			mounted = false
			run(t, "umount", dir)
		}
	}
	t.Cleanup(umount)
	return umount
}

// An ext4 of the kernel on a loop device on the file: what is written arrives,
// what is removed and trimmed is unmapped, and e2fsck is content.
func TestLoop(t *testing.T) {
	for _, options := range [][]string{nil, {"--direct-io=on"}} {
		t.Run(strings.Join(append(options, "loop"), " "), func(t *testing.T) {
			p := newPool()
			d := p.add("disk", 128<<20)
			m := mountDevices(t, p)
			dev, detach := loop(t, m.path("disk"), options...)
			run(t, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", dev)
			made := len(d.mapped())
			dir := tempDir(t)
			umount := mountLoop(t, dev, dir)
			data := noise(40 << 20)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), data, 0o600))
			unix.Sync()
			full := len(d.mapped())
			require.GreaterOrEqual(t, full, made+40<<20/fakeBlock)
			require.Positive(t, d.flushes.Load())
			umount()

			umount = mountLoop(t, dev, dir)
			got, err := os.ReadFile(filepath.Join(dir, "file"))
			require.NoError(t, err)
			require.True(t, bytes.Equal(data, got))
			require.NoError(t, os.Remove(filepath.Join(dir, "file")))
			unix.Sync()
			t.Log(strings.TrimSpace(run(t, "fstrim", "-v", dir)))
			require.Less(t, len(d.mapped()), full-39<<20/fakeBlock, "space has come back")
			umount()
			detach()
			eventually(t, func() bool { return !d.isOpen() })
			run(t, "e2fsck", "-fn", m.path("disk"))
		})
	}
}

// The loop device passes on how large a block is.
func TestLoopGranularity(t *testing.T) {
	p := newPool()
	p.add("disk", 16<<20)
	m := mountDevices(t, p)
	dev, _ := loop(t, m.path("disk"))
	got, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/queue/discard_granularity")
	require.NoError(t, err)
	require.Equal(t, "65536\n", string(got))
}

// TestFuse2fs works as an ordinary user; see TestAsOrdinaryUser.
func TestFuse2fs(t *testing.T) {
	needTools(t, "fuse2fs", "mkfs.ext4", "e2fsck", "fusermount3", "mountpoint")
	p := newPool()
	d := p.add("disk", 64<<20)
	m := mountDevices(t, p)
	run(t, "mkfs.ext4", "-q", "-F", m.path("disk"))
	eventually(t, func() bool { return !d.isOpen() })
	dir := tempDir(t)
	data := noise(10 << 20)
	for range 2 {
		proc := exec.Command("fuse2fs", m.path("disk"), dir, "-f", "-o", "fakeroot")
		require.NoError(t, proc.Start())
		eventually(t, func() bool { return exec.Command("mountpoint", "-q", dir).Run() == nil })
		path := filepath.Join(dir, "file")
		if _, err := os.Stat(path); err != nil {
			run(t, "dd", "if="+source(t, data), "of="+path, "bs=1M", "conv=fsync", "status=none")
		}
		got := run(t, "cat", path)
		require.True(t, string(data) == got)
		run(t, "fusermount3", "-u", dir)
		require.NoError(t, proc.Wait())
		eventually(t, func() bool { return !d.isOpen() })
	}
	run(t, "e2fsck", "-fn", m.path("disk"))
}

// source is a file with data in it.
func source(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(tempDir(t), "source")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return path
}

// cp and dd open with O_TRUNC.
func TestCopyTools(t *testing.T) {
	needTools(t, "dd", "cp", "cat")
	p := newPool()
	d := p.add("disk", 4<<20)
	m := mountDevices(t, p)
	data := noise(4 << 20)
	image := source(t, data)
	content := func() []byte {
		t.Helper()
		got, err := os.ReadFile(m.path("disk"))
		require.NoError(t, err)
		return got
	}
	run(t, "cp", image, m.path("disk"))
	require.True(t, bytes.Equal(data, content()))
	run(t, "dd", "if=/dev/zero", "of="+m.path("disk"), "bs=512", "count=1", "status=none")
	clear(data[:512])
	require.True(t, bytes.Equal(data, content()), "dd has replaced one block of the disk, not the disk")
	run(t, "cp", "-p", m.path("disk"), image+".back")
	back, err := os.ReadFile(image + ".back")
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, back))
	run(t, "touch", m.path("disk"))

	// The holes of a sparse file reach the device only if cp writes them.
	require.NoError(t, os.Truncate(image, 1<<20))
	require.NoError(t, os.Truncate(image, 4<<20))
	clear(data[1<<20:])
	run(t, "cp", "--sparse=never", image, m.path("disk"))
	require.True(t, bytes.Equal(data[1<<20:], content()[1<<20:]))

	// More than fits: the device is full, and says so.
	out, err := exec.Command("dd", "if=/dev/zero", "of="+m.path("disk"), "bs=1M", "status=none").CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "No space left on device")
	require.True(t, bytes.Equal(make([]byte, 4<<20), content()))

	// A sparse device is copied as one.
	require.NoError(t, unix.Fallocate(int(m.open("disk", os.O_RDWR).Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4<<20))
	require.Empty(t, d.mapped())
	run(t, "cp", "--sparse=auto", m.path("disk"), image+".sparse")
	var st unix.Stat_t
	require.NoError(t, unix.Stat(image+".sparse", &st))
	require.Equal(t, int64(4<<20), st.Size)
	require.Zero(t, st.Blocks)
}

// The unprivileged half of the tests, when root runs them.
func TestAsOrdinaryUser(t *testing.T) {
	needRoot(t)
	needTools(t, "setpriv")
	self, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer self.Close()
	dir := tempDir(t)
	require.NoError(t, os.Chmod(dir, 0o755))
	bin := filepath.Join(dir, "fusefile.test")
	f, err := os.OpenFile(bin, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(f, self)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	home := filepath.Join(dir, "home")
	require.NoError(t, os.Mkdir(home, 0o700))
	require.NoError(t, os.Chown(home, 65534, 65534))
	cmd := exec.Command("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
		"env", "-i", "PATH="+os.Getenv("PATH"), "HOME="+home, "LAYERFS_TEST_DIR="+home,
		bin, "-test.v", "-test.count=1", "-test.timeout=5m")
	cmd.Dir = home
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestFuse2fs")
	require.Contains(t, string(out), "--- PASS: TestReadWrite")
	require.NotContains(t, string(out), "DATA RACE")
}
