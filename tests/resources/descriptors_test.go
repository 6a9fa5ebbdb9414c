package resources

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// limited mounts a union with n files to open, and others that nobody has
// looked at yet, by a daemon that may have that many descriptors.
func limited(t *testing.T, n, limit int) *harness.Mount {
	t.Helper()
	harness.RequireFUSE(t)
	e := harness.New(t)
	plant(t, e.P("l"), n, true)
	for i := 0; i < 2*cachedDirs; i++ {
		e.Tree("l", fmt.Sprintf("many/%d/f=%d", i, i))
	}
	e.Tree("l2", "held=bytes\nother/deep/file=1\nother/link->deep\nother/more/file=2")
	opts := "lowerdir=" + e.P("l") + ":" + e.P("l2") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w")
	nofile := fmt.Sprintf("--nofile=%d:%d", limit, limit)
	r := e.Cmd(nil, "prlimit", nofile, harness.Bin(), "-o", opts, e.P("m"))
	require.Zero(t, r.Code, r.Stderr)
	return e.Adopt(e.P("m"), opts)
}

// file is the path of the i-th file that plant has made.
func file(m *harness.Mount, i int) string {
	return m.P("d"+strconv.Itoa(i/1000), name(i))
}

// served checks that those who have what they need do not feel that the
// daemon has no descriptors left: the file that they hold open, and names,
// also in directories that were not looked at before.
func served(t *testing.T, m *harness.Mount, held *os.File) {
	t.Helper()
	buf := make([]byte, 5)
	_, err := unix.Pread(int(held.Fd()), buf, 0)
	require.NoError(t, err, "reading an open file")
	require.Equal(t, "bytes", string(buf))
	_, err = held.Stat()
	require.NoError(t, err)
	for _, p := range []string{"other/deep/file", "other/link", "other/more/file"} {
		_, err = os.Lstat(m.P(p))
		require.NoError(t, err)
	}
	_, err = os.Readlink(m.P("other/link"))
	require.NoError(t, err)
	for i := 0; i < 2*cachedDirs; i += 7 {
		_, err = os.Lstat(m.P("many", strconv.Itoa(i), "f"))
		require.NoError(t, err, "a name in a directory")
		_, err = os.ReadDir(m.P("many", strconv.Itoa(i)))
		require.NoError(t, err, "listing a directory")
	}
	require.NoError(t, unix.Statfs(m.Point, new(unix.Statfs_t)))
}

// Who opens more files than the daemon may have descriptors is served none the
// less or gets an error, and nobody else feels it.
func TestDescriptorLimit(t *testing.T) {
	const limit, n = 1024, 1500
	m := limited(t, n, limit)
	held, err := os.Open(m.P("held"))
	require.NoError(t, err)
	defer held.Close()
	walk(t, m.P("many"))
	require.LessOrEqual(t, fds(t, m.Pid), cachedDirs+fewFds, "cached directories")

	var open []*os.File
	defer func() { // also after a failure, or the mount could not be ended
		for _, f := range open {
			f.Close()
		}
	}()
	closeAll := func() {
		for _, f := range open {
			f.Close()
		}
		open = nil
		require.True(t, harness.Eventually(10*time.Second, func() bool { return fds(t, m.Pid) <= cachedDirs+fewFds }),
			"%d descriptors with all files closed", fds(t, m.Pid))
	}
	for round := 0; round < 2; round++ {
		var refused error
		for i := 0; i < n && refused == nil; i++ {
			f, err := os.Open(file(m, i))
			if err == nil {
				open = append(open, f)
			}
			refused = err
		}
		t.Logf("%d files are open, the daemon has %d of %d descriptors, then: %v", len(open), fds(t, m.Pid), limit, refused)
		require.True(t, refused == nil || exhausted(refused), "%v", refused)
		require.GreaterOrEqual(t, len(open), limit-cachedDirs-2*fewFds, "too few files")
		served(t, m, held)
		for i, f := range open {
			require.Equal(t, name(i), content(t, f), "an open file")
		}
		if round == 1 {
			removed(t, m, open)
		}
		closeAll()
	}
	require.NoError(t, os.WriteFile(m.P("other/deep/file"), []byte("changed"), 0644), "a copy-up")
}

// removed removes the names of files that are open, from the upper, where
// nothing else leads to them. What is in them can still be read, and not only
// from the kernel's pages; where the daemon cannot promise that, it may refuse.
func removed(t *testing.T, m *harness.Mount, open []*os.File) {
	t.Helper()
	refused := 0
	for i, f := range open {
		require.NoError(t, os.Chmod(file(m, i), 0600), "a copy-up")
		require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		if err := os.Remove(file(m, i)); err != nil {
			require.True(t, exhausted(err), "%v", err)
			refused++
		}
	}
	t.Logf("%d of %d are removed, %d are not", len(open)-refused, len(open), refused)
	for i, f := range open {
		require.Equal(t, name(i), content(t, f), "an open file without a name")
	}
}

// name is what plant has put into the i-th file.
func name(i int) string { return "f" + strconv.Itoa(i) }

func content(t *testing.T, f *os.File) string {
	t.Helper()
	buf := make([]byte, 100)
	n, err := unix.Pread(int(f.Fd()), buf, 0)
	require.NoError(t, err, f.Name())
	return string(buf[:n])
}

// Files that are mapped and then closed (fuse-overlayfs #378) stay open in
// the daemon as long as they are mapped.
func TestMapped(t *testing.T) {
	n, limit := size(20000, 2000), size(20000, 1500)
	m := limited(t, n, limit)
	held, err := os.Open(m.P("held"))
	require.NoError(t, err)
	defer held.Close()
	var maps [][]byte
	unmap := func() {
		for _, mem := range maps {
			_ = unix.Munmap(mem)
		}
		maps = nil
	}
	defer unmap()
	var refused error
	for i := 0; i < n && refused == nil; i++ {
		var mem []byte
		if mem, refused = mapOnce(file(m, i)); refused == nil {
			maps = append(maps, mem)
		}
	}
	t.Logf("%d files are mapped, the daemon has %d of %d descriptors, then: %v", len(maps), fds(t, m.Pid), limit, refused)
	require.True(t, refused == nil || exhausted(refused), "%v", refused)
	require.GreaterOrEqual(t, len(maps), limit-cachedDirs-2*fewFds)
	served(t, m, held)
	for i, mem := range maps {
		require.Equal(t, name(i), strings.TrimRight(string(mem), "\x00"), "a mapped file")
	}
	unmap()
	require.True(t, harness.Eventually(30*time.Second, func() bool { return fds(t, m.Pid) <= cachedDirs+fewFds }),
		"%d descriptors with nothing mapped", fds(t, m.Pid))
	mem, err := mapOnce(file(m, n-1))
	require.NoError(t, err)
	maps = append(maps, mem)
}

// mapOnce maps a file and closes it.
func mapOnce(p string) ([]byte, error) {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return unix.Mmap(fd, 0, 100, unix.PROT_READ, unix.MAP_SHARED)
}
