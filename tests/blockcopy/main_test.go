package blockcopy

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

func TestMain(m *testing.M) {
	syscall.Umask(022)
	harness.Main(m)
}

const (
	block = 64 << 10
	mib   = 1 << 20
)

// noise is content that does not compress and is the same for a seed.
func noise(seed uint64, n int) []byte {
	out := make([]byte, n)
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = src.Read(out) // never fails
	return out
}

// rig is a test with a lower file "big" and a model of it.
type rig struct {
	*harness.Env
	t     *testing.T
	m     *harness.Mount
	model []byte
	opts  string
}

const forced = "copyup=block"

// newRig puts size bytes in the lower and mounts.
func newRig(t *testing.T, size int, more ...string) *rig {
	t.Helper()
	r := &rig{Env: harness.New(t), t: t, model: noise(1, size)}
	require.NoError(t, os.WriteFile(r.P("l", "big"), r.model, 0644))
	old := time.Date(2020, 2, 3, 4, 5, 6, 700, time.UTC)
	require.NoError(t, os.Chtimes(r.P("l", "big"), old, old))
	r.opts = r.RW(append([]string{forced}, more...)...)
	r.m = r.Mount(r.opts)
	return r
}

func (r *rig) remount() {
	r.t.Helper()
	r.m = r.m.Remount(r.opts)
}

// write changes file and model.
func (r *rig) write(name string, data []byte, off int) {
	r.t.Helper()
	f, err := os.OpenFile(r.m.P(name), os.O_WRONLY, 0)
	require.NoError(r.t, err)
	_, err = f.WriteAt(data, int64(off))
	require.NoError(r.t, err)
	require.NoError(r.t, f.Close())
	if end := off + len(data); end > len(r.model) {
		r.model = append(r.model, make([]byte, end-len(r.model))...)
	}
	copy(r.model[off:], data)
}

// same compares a file of the mount with the model.
func (r *rig) same(name string) {
	r.t.Helper()
	got, err := os.ReadFile(r.m.P(name))
	require.NoError(r.t, err)
	requireSame(r.t, r.model, got, name)
}

func requireSame(t testing.TB, want, got []byte, what string) {
	t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	for i := range min(len(want), len(got)) {
		if want[i] != got[i] {
			t.Fatalf("%s: byte %#x is wrong (%d bytes, want %d)", what, i, len(got), len(want))
		}
	}
	t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
}

// device is what `layerfs thin ls` says.
type device struct {
	Name      string
	Size      int64
	Mapped    int64
	Exclusive int64
}

func (r *rig) pool() string { return r.P("u", ".wh..wh.layerfs", "pool") }

// devices lists those of the private pool.
func (r *rig) devices() []device {
	r.t.Helper()
	return r.devicesIn(r.pool())
}

func (r *rig) devicesIn(pool string) (list []device) {
	r.t.Helper()
	res := r.Layerfs("thin", "ls", "--json", pool)
	require.Zero(r.t, res.Code, res.Stderr)
	require.NoError(r.t, json.Unmarshal([]byte(res.Stdout), &list))
	return list
}

// isStub says that the upper has a stub of that name, and nothing of its content.
func (r *rig) isStub(name string) {
	r.t.Helper()
	text, err := os.ReadFile(r.P("u", name))
	require.NoError(r.t, err)
	require.Len(r.t, text, 512)
	require.Contains(r.t, string(text), "only a stub")
	require.NotEmpty(r.t, stubAttr(r.t, r.P("u", name)))
}

func (r *rig) isPlain(name string) {
	r.t.Helper()
	disk, err := os.ReadFile(r.P("u", name))
	require.NoError(r.t, err)
	requireSame(r.t, r.model, disk, name+" in the upper")
	require.Empty(r.t, stubAttr(r.t, r.P("u", name)))
}

func stubAttr(t testing.TB, path string) string {
	t.Helper()
	buf := make([]byte, 512)
	for _, ns := range []string{"trusted.", "user."} {
		if n, err := unix.Lgetxattr(path, ns+"layerfs.stub", buf); err == nil {
			return string(buf[:n])
		}
	}
	return ""
}

// status is what `layerfs status` says.
func (r *rig) status() (s struct {
	Troubles     []string
	BlockCopyUps int   `json:"block_copy_ups"`
	NotCopied    int64 `json:"bytes_not_copied"`
	CopiedBytes  int64 `json:"copied_bytes"`
}) {
	r.t.Helper()
	res := r.Layerfs("status", "--json", r.m.Point)
	require.Zero(r.t, res.Code, res.Stderr)
	require.NoError(r.t, json.Unmarshal([]byte(res.Stdout), &s))
	return s
}

// poolProcess returns the process of the private pool, 0 for none.
func (r *rig) poolProcess() int {
	for _, pid := range harness.Daemons(r.pool()) {
		return pid
	}
	return 0
}

// killPool kills the process of the private pool.
func (r *rig) killPool() {
	if pid := r.poolProcess(); pid != 0 {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// killDaemon kills the daemon, and mounts again.
func (r *rig) killDaemon() {
	r.t.Helper()
	r.crash()
	r.m = r.Mount(r.opts)
}

func (r *rig) crash() {
	r.t.Helper()
	r.m.Died()
	require.NoError(r.t, unix.Kill(r.m.Pid, unix.SIGKILL))
	require.True(r.t, harness.Eventually(5*time.Second, func() bool { return !harness.Alive(r.m.Pid) }))
	harness.Detach(r.t, r.m.Point)
	r.launcherGone()
}

// launcherGone waits for the end of what the daemon has started.
func (r *rig) launcherGone() {
	r.t.Helper()
	require.True(r.t, harness.Eventually(10*time.Second, func() bool { return r.poolProcess() == 0 }), "the pool process stays")
}

// eventuallyDevices waits until the pool has n devices: they are removed in
// the background.
func (r *rig) eventuallyDevices(n int) []device {
	r.t.Helper()
	var list []device
	ok := harness.Eventually(5*time.Second, func() bool {
		list = r.devices()
		return len(list) == n
	})
	require.True(r.t, ok, "%d devices, want %d: %+v", len(list), n, list)
	return list
}

// du is the space that a directory takes on disk.
func du(t testing.TB, dir string) (bytes int64) {
	t.Helper()
	require.NoError(t, filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil
			}
			return err
		}
		bytes += fi.Sys().(*syscall.Stat_t).Blocks * 512
		return nil
	}))
	return bytes
}

func errnoOf(err error) error {
	for err != nil {
		if e, ok := err.(syscall.Errno); ok {
			return e
		}
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
	return nil
}

func contains(list []string, word string) bool {
	return strings.Contains(strings.Join(list, "\n"), word)
}
