package fusefile

import (
	"cmp"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/fusedev"
)

// skip ends a test for want of something, which is a failure in strict mode.
func skip(t *testing.T, why ...any) {
	t.Helper()
	if os.Getenv("LAYERFS_TEST_STRICT") == "1" {
		t.Fatal(why...)
	}
	t.Skip(why...)
}

func needTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			skip(t, err)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only for root")
	}
}

// tempDir is a directory of the test's own on a file system with a disk.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(cmp.Or(os.Getenv("LAYERFS_TEST_DIR"), "/var/tmp"), "fusefile-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// logBuffer takes what the file system logs.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// mount is a mount of devices.
type mount struct {
	t     *testing.T
	dir   string
	fs    *FS
	log   *logBuffer
	conn  *fusedev.Conn
	ended chan error
	once  sync.Once
}

func mountDevices(t *testing.T, devices Devices) *mount {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		skip(t, err)
	} else {
		f.Close()
	}
	m := &mount{t: t, dir: tempDir(t), log: &logBuffer{}, ended: make(chan error, 1)}
	m.fs = New(devices, Options{
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
		Log: log.New(io.MultiWriter(m.log, t.Output()), "", 0),
	})
	conn, err := m.fs.Mount(m.dir, "test", false)
	require.NoError(t, err)
	m.conn = conn
	go func() { m.ended <- conn.Serve(m.fs, m.fs.FuseOptions()) }()
	t.Cleanup(func() {
		m.end(func() {
			if err := fusedev.Unmount(m.dir, false); err != nil {
				t.Error(err)
				require.NoError(t, fusedev.Unmount(m.dir, true))
			}
		})
	})
	m.learnPoll()
	return m
}

// end ends the mount by unmount, once.
func (m *mount) end(unmount func()) {
	m.once.Do(func() {
		unmount()
		require.NoError(m.t, <-m.ended)
		m.conn.Close()
		require.NoError(m.t, m.fs.Close())
	})
}

// learnPoll has the kernel learn that these files cannot be polled. Else it asks
// when package os registers one with epoll, and the scheduler, which does not
// expect that call to block, keeps the handler in this same process from running.
func (m *mount) learnPoll() {
	fd, err := unix.Open(m.path(".go-fuse-epoll-hack"), unix.O_RDONLY, 0) // go-fuse answers this name
	require.NoError(m.t, err)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	require.NoError(m.t, err)
	require.NoError(m.t, unix.Close(fd))
}

func (m *mount) path(name string) string { return filepath.Join(m.dir, name) }

// open opens a file until the end of the test at the latest.
func (m *mount) open(name string, flags int) *os.File {
	m.t.Helper()
	f, err := os.OpenFile(m.path(name), flags, 0)
	require.NoError(m.t, err)
	m.t.Cleanup(func() { f.Close() })
	return f
}

// eventually waits for what happens in the background.
func eventually(t *testing.T, what func() bool) {
	t.Helper()
	require.Eventually(t, what, 5*time.Second, time.Millisecond)
}

// run runs a command, whose failure is the test's.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%v: %s", args, out)
	return string(out)
}
