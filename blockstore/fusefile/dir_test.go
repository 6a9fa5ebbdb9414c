package fusefile

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func mustLook(t *testing.T, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	require.NoError(t, err)
	return path
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var list []string
	for _, e := range entries {
		require.True(t, e.Type().IsRegular())
		list = append(list, e.Name())
	}
	return list
}

func TestDirectory(t *testing.T) {
	p := newPool()
	m := mountDevices(t, p)
	require.Empty(t, names(t, m.dir))
	var want []string
	for i := range 2000 {
		name := fmt.Sprintf("device-%04d", i)
		p.add(name, int64(i)*512)
		want = append(want, name)
	}
	require.Equal(t, want, names(t, m.dir), "a list is never cached")
	lookups := p.lookups.Load()
	run(t, "ls", "-l", m.dir)
	require.Less(t, p.lookups.Load()-lookups, int64(100), "READDIRPLUS brings the attributes")
	p.remove("device-0000")
	require.Equal(t, want[1:], names(t, m.dir))

	d, err := os.Open(m.dir)
	require.NoError(t, err)
	defer d.Close()
	first, err := d.Readdirnames(10)
	require.NoError(t, err)
	for _, name := range want[1:1500] {
		p.remove(name)
	}
	rest, err := d.Readdirnames(-1)
	require.NoError(t, err)
	require.Equal(t, want[1:], append(first, rest...), "a handle keeps its list")
	_, err = d.Seek(0, 0)
	require.NoError(t, err)
	again, err := d.Readdirnames(-1)
	require.NoError(t, err)
	require.Equal(t, want[1500:], again, "until it is rewound")
	require.NoError(t, d.Sync())
}

func TestAttributes(t *testing.T) {
	p := newPool()
	d := p.add("disk", 10<<20)
	m := mountDevices(t, p)
	f := m.open("disk", os.O_RDWR)
	_, err := f.WriteAt(make([]byte, 3*fakeBlock), 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	eventually(t, func() bool { return !d.isOpen() })

	var st unix.Stat_t
	require.NoError(t, unix.Stat(m.path("disk"), &st))
	require.Equal(t, uint32(unix.S_IFREG|0o600), st.Mode)
	require.Equal(t, []uint32{uint32(os.Geteuid()), uint32(os.Getegid())}, []uint32{st.Uid, st.Gid})
	require.Equal(t, int64(10<<20), st.Size)
	require.Equal(t, int64(3*fakeBlock/512), st.Blocks)
	require.Equal(t, int64(fakeBlock), int64(st.Blksize))
	require.Equal(t, uint64(1), uint64(st.Nlink))
	require.Equal(t, uint64(firstNode+d.id), st.Ino)
	require.NoError(t, unix.Stat(m.dir, &st))
	require.Equal(t, uint32(unix.S_IFDIR|0o700), st.Mode)

	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	require.NoError(t, os.Chtimes(m.path("disk"), old, old))
	fi, err := os.Stat(m.path("disk"))
	require.NoError(t, err)
	require.True(t, fi.ModTime().Equal(old))
	f = m.open("disk", os.O_RDWR)
	_, err = f.WriteAt([]byte("x"), 0)
	require.NoError(t, err)
	fi, err = f.Stat()
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), fi.ModTime(), time.Minute)

	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(m.dir, &fs))
	require.Equal(t, int64(fakeBlock), int64(fs.Bsize))
	require.Equal(t, uint64(fakeTotal/fakeBlock), fs.Blocks)
	require.Equal(t, uint64(fakeTotal/fakeBlock-3), fs.Bavail)
	require.Equal(t, fs.Bavail, fs.Bfree)
}

func TestRefused(t *testing.T) {
	p := newPool()
	p.add("disk", 1<<20)
	m := mountDevices(t, p)
	disk := m.path("disk")
	_, err := os.Create(m.path("new"))
	require.ErrorIs(t, err, unix.EPERM)
	require.ErrorIs(t, os.Mkdir(m.path("new"), 0o700), unix.EPERM)
	require.ErrorIs(t, os.Remove(disk), unix.EPERM)
	require.ErrorIs(t, os.Rename(disk, m.path("new")), unix.EPERM)
	require.ErrorIs(t, os.Link(disk, m.path("new")), unix.EPERM)
	require.ErrorIs(t, os.Symlink("a", m.path("new")), unix.EPERM)
	require.ErrorIs(t, unix.Mkfifo(m.path("new"), 0o600), unix.EPERM)
	require.ErrorIs(t, os.Chmod(disk, 0o644), unix.EPERM)
	require.NoError(t, os.Chmod(disk, 0o600), "is so already")
	require.ErrorIs(t, os.Chmod(m.dir, 0o755), unix.EPERM)
	require.NoError(t, os.Chmod(m.dir, 0o700))
	require.NoError(t, os.Chown(disk, os.Geteuid(), -1))
	require.ErrorIs(t, os.Chown(disk, os.Geteuid()+1, -1), unix.EPERM)
	if os.Geteuid() == 0 {
		require.ErrorIs(t, os.Chown(disk, -1, 7), unix.EPERM)
	}
	require.ErrorIs(t, unix.Setxattr(disk, "user.x", []byte("1"), 0), unix.EOPNOTSUPP)
	_, err = unix.Getxattr(disk, "user.x", nil)
	require.ErrorIs(t, err, unix.EOPNOTSUPP)
	n, err := unix.Listxattr(disk, nil)
	require.True(t, n == 0 || err == unix.EOPNOTSUPP, "%d, %v", n, err)
	_, err = os.Stat(m.path("none"))
	require.ErrorIs(t, err, unix.ENOENT)
	_, err = os.Stat(m.path("disk/none"))
	require.ErrorIs(t, err, unix.ENOTDIR)
	require.Equal(t, []string{"disk"}, names(t, m.dir))
}

// All handles share one device, from the first open to the last close.
func TestSharedDevice(t *testing.T) {
	p := newPool()
	d := p.add("disk", 1<<20)
	m := mountDevices(t, p)
	d.setElsewhere(true)
	_, err := os.Open(m.path("disk"))
	require.ErrorIs(t, err, unix.EBUSY)
	d.setElsewhere(false)
	for range 20 {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				flags := []int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR, unix.O_PATH}[i%4]
				f, err := os.OpenFile(m.path("disk"), flags, 0)
				if err != nil {
					t.Error(err)
					return
				}
				f.Close()
			})
		}
		wg.Wait()
	}
	eventually(t, func() bool { return !d.isOpen() })
	require.Equal(t, d.opens.Load(), d.closes.Load())
	a, b := m.open("disk", os.O_RDONLY), m.open("disk", os.O_RDWR)
	opens := d.opens.Load()
	require.NoError(t, a.Close())
	_, err = b.WriteAt([]byte("x"), 0)
	require.NoError(t, err)
	c := m.open("disk", os.O_RDONLY)
	require.NoError(t, b.Close())
	_, err = c.ReadAt(make([]byte, 1), 0)
	require.NoError(t, err)
	require.Equal(t, opens, d.opens.Load())
	require.True(t, d.isOpen())
	require.NoError(t, c.Close())
	eventually(t, func() bool { return !d.isOpen() })
}

// What another process does to a device while it is not open here is seen by
// the next one who opens it; what is cached of an open one is kept.
func TestCache(t *testing.T) {
	p := newPool()
	d := p.add("disk", 1<<20)
	m := mountDevices(t, p)
	first, second := noise(1<<20), noise(1<<20)
	require.NoError(t, os.WriteFile(m.path("disk"), first, 0))
	f := m.open("disk", os.O_RDONLY)
	got := make([]byte, 1<<20)
	_, err := f.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(first, got))

	var reads atomic.Int64
	d.on(func(op string) error {
		if op == "read" {
			reads.Add(1)
		}
		return nil
	})
	eventually(t, func() bool { // the kernel may need the memory for something else
		reads.Store(0)
		require.NoError(t, m.open("disk", os.O_RDWR).Close())
		_, err = f.ReadAt(got, 0)
		require.NoError(t, err)
		return reads.Load() == 0
	})
	require.NoError(t, f.Close())
	eventually(t, func() bool { return !d.isOpen() })

	_, err = p.Open("disk")
	require.NoError(t, err)
	_, err = d.WriteAt(second, 0)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	got, err = os.ReadFile(m.path("disk"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(second, got))
}

// A device grows while its file is open, also from the middle of a page.
func TestGrow(t *testing.T) {
	p := newPool()
	d := p.add("disk", 1<<20+512)
	m := mountDevices(t, p)
	f := m.open("disk", os.O_RDWR)
	_, err := f.ReadAt(make([]byte, 512), 1<<20)
	require.NoError(t, err)
	data := noise(2 << 20)
	d.grow(2 << 20)
	_, err = d.WriteAt(data, 0)
	require.NoError(t, err)
	eventually(t, func() bool {
		fi, err := f.Stat()
		return err == nil && fi.Size() == 2<<20
	})
	got := make([]byte, 4096)
	_, err = f.ReadAt(got[512:], 1<<20+512)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data[1<<20+512:1<<20+4096], got[512:]))
	fi, err := os.Stat(m.path("disk"))
	require.NoError(t, err)
	require.Equal(t, int64(2<<20), fi.Size())
	_, err = f.WriteAt([]byte("x"), 2<<20-1)
	require.NoError(t, err)
}

// Devices are removed, made again and renamed behind the kernel's back.
func TestDevicesComeAndGo(t *testing.T) {
	p := newPool()
	p.add("a", 1<<20)
	m := mountDevices(t, p)
	stat := func(name string) int64 {
		fi, err := os.Stat(m.path(name))
		if err != nil {
			require.ErrorIs(t, err, unix.ENOENT)
			return -1
		}
		return fi.Size()
	}
	require.Equal(t, int64(1<<20), stat("a"))
	p.remove("a")
	p.add("a", 2<<20)
	f := m.open("a", os.O_RDWR) // the kernel knows the old one by that name
	fi, err := f.Stat()
	require.NoError(t, err)
	require.Equal(t, int64(2<<20), fi.Size())

	p.rename("a", "b")
	_, err = f.WriteAt([]byte("x"), 0)
	require.NoError(t, err, "an open one stays")
	fi, err = f.Stat()
	require.NoError(t, err)
	require.Equal(t, int64(2<<20), fi.Size())
	require.Equal(t, int64(2<<20), stat("b"))
	require.NoError(t, f.Close())
	eventually(t, func() bool { return stat("a") == -1 })

	p.remove("b")
	eventually(t, func() bool { return stat("b") == -1 })
	_, err = os.Open(m.path("b"))
	require.ErrorIs(t, err, unix.ENOENT)
	p.add("b", 3<<20)
	require.Equal(t, int64(3<<20), stat("b"), "absence is not cached")
}

// What the kernel has forgotten is forgotten here.
func TestForget(t *testing.T) {
	p := newPool()
	for i := range 100 {
		p.add(fmt.Sprint(i), 512)
	}
	m := mountDevices(t, p)
	f := m.open("7", os.O_RDONLY)
	run(t, "ls", "-l", m.dir)
	known := func() (nodes, dirs int) {
		m.fs.mu.Lock()
		defer m.fs.mu.Unlock()
		return len(m.fs.nodes), len(m.fs.dirs)
	}
	nodes, _ := known()
	require.Equal(t, 100, nodes)
	for i := range 100 {
		require.NoError(t, m.conn.InvalEntry(rootID, fmt.Sprint(i)))
	}
	eventually(t, func() bool {
		nodes, dirs := known()
		return nodes == 1 && dirs == 0
	})
	require.NoError(t, f.Close())
	eventually(t, func() bool {
		nodes, _ := known()
		return nodes == 0
	})
}

// Files that are still open when the mount ends are flushed and closed.
func TestUnmountWithOpenFiles(t *testing.T) {
	needRoot(t)
	p := newPool()
	d := p.add("disk", 1<<20)
	m := mountDevices(t, p)
	f := m.open("disk", os.O_RDWR)
	_, err := f.WriteAt([]byte("x"), 0)
	require.NoError(t, err)
	m.end(func() {
		require.Equal(t, unix.EBUSY, unix.Unmount(m.dir, unix.MNT_FORCE)) // ends the connection
		require.NoError(t, unix.Unmount(m.dir, unix.MNT_DETACH))
	})
	require.False(t, d.isOpen())
	require.Equal(t, int64(1), d.flushes.Load())
	_, err = f.WriteAt([]byte("x"), 0)
	require.ErrorIs(t, err, unix.ENOTCONN)
}

func TestCloseReportsErrors(t *testing.T) {
	p := newPool()
	d := p.add("disk", 1<<20)
	f := New(p, Options{})
	n := f.remember(d.entry("disk"))
	n.openMu.Lock()
	require.NoError(t, f.activateLocked(n))
	n.openMu.Unlock()
	n.modified(n.active.Load())
	d.on(func(op string) error { return syscall.EDQUOT })
	_, a, code := f.use(n.id) // a request that runs on
	require.True(t, code.Ok())
	require.NoError(t, f.Close())
	require.True(t, d.isOpen())
	_, _, code = f.use(n.id)
	require.False(t, code.Ok())
	require.ErrorIs(t, a.release(), unix.EDQUOT)
	require.False(t, d.isOpen())
	require.False(t, a.acquire())

	n.openMu.Lock()
	d.on(func(op string) error { return nil })
	require.NoError(t, f.activateLocked(n))
	n.openMu.Unlock()
	n.modified(n.active.Load())
	d.on(func(op string) error { return syscall.EDQUOT })
	err := f.Close()
	require.ErrorIs(t, err, unix.EDQUOT)
	require.ErrorContains(t, err, "device disk: ")
	require.False(t, d.isOpen())
}

// A device that changes its name between two steps of opening it is not
// mistaken for another.
func TestOpenRace(t *testing.T) {
	p := newPool()
	d := p.add("a", 1<<20)
	f := New(p, Options{})
	n := f.remember(d.entry("a"))
	e := p.add("b", 1<<20)
	d.on(func(op string) error {
		if op == "open" {
			d.on(func(string) error { return nil })
			p.rename("a", "c")
			p.rename("b", "a")
		}
		return nil
	})
	n.openMu.Lock()
	defer n.openMu.Unlock()
	require.ErrorIs(t, f.activateLocked(n), unix.ESTALE)
	require.False(t, d.isOpen() || e.isOpen())
	require.True(t, slices.Equal([]int64{1, 1}, []int64{d.opens.Load(), d.closes.Load()}))
}
