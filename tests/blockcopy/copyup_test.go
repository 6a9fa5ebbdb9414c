package blockcopy

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// 32 KiB into a big lower file: one block and one stub.
func TestFirstWrite(t *testing.T) {
	r := newRig(t, 32*mib)
	r.write("big", noise(2, 32<<10), 3*mib+100)
	r.same("big")
	r.isStub("big")
	s := r.status()
	require.Equal(t, 1, s.BlockCopyUps)
	require.EqualValues(t, 32*mib, s.NotCopied)
	require.Zero(t, s.CopiedBytes)
	fi, err := os.Stat(r.m.P("big"))
	require.NoError(t, err)
	require.EqualValues(t, 32*mib, fi.Size())
	require.WithinDuration(t, time.Now(), fi.ModTime(), time.Minute)

	r.remount()
	r.same("big")
	r.m.Unmount()
	list := r.devices()
	require.Len(t, list, 1)
	require.EqualValues(t, block, list[0].Mapped)
	require.Less(t, du(t, r.P("u")), int64(8*mib))
}

// What changes no content copies none.
func TestMetadata(t *testing.T) {
	r := newRig(t, 8*mib)
	require.NoError(t, os.Chmod(r.m.P("big"), 0600))
	old := time.Date(1999, 1, 2, 3, 4, 5, 6, time.UTC)
	require.NoError(t, os.Chtimes(r.m.P("big"), old, old))
	require.NoError(t, unix.Lsetxattr(r.m.P("big"), "user.colour", []byte("red"), 0))
	if harness.Root() {
		require.NoError(t, os.Chown(r.m.P("big"), 1, 2))
	}
	require.NoError(t, os.Rename(r.m.P("big"), r.m.P("huge")))
	r.same("huge")
	r.remount()
	r.same("huge")
	fi, err := os.Stat(r.m.P("huge"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0600), fi.Mode())
	require.True(t, fi.ModTime().Equal(old), "%v", fi.ModTime())
	require.Equal(t, "red", harness.GetXattr(t, r.m.P("huge"), "user.colour"))
	r.isStub("huge")
	r.m.Unmount()
	list := r.devices()
	require.Len(t, list, 1)
	require.Zero(t, list[0].Mapped)
}

// Small files are copied whole, and all are where nobody asked for blocks.
func TestThreshold(t *testing.T) {
	r := newRig(t, 256<<10)
	require.NoError(t, os.WriteFile(r.P("l", "small"), noise(3, 256<<10-1), 0644))
	for _, name := range []string{"big", "small"} {
		require.NoError(t, os.Chmod(r.m.P(name), 0600))
	}
	r.isStub("big")
	require.Empty(t, stubAttr(t, r.P("u", "small")))

	require.NoError(t, os.WriteFile(r.P("l", "other"), noise(4, mib), 0644))
	r.m = r.m.Remount(r.RW()) // the drop-in form
	require.NoError(t, os.Chmod(r.m.P("other"), 0600))
	require.Empty(t, stubAttr(t, r.P("u", "other")))
	r.same("big")
}

// Cut off and grown again reads as zeros, at any place, also after a restart.
func TestTruncate(t *testing.T) {
	r := newRig(t, 4*mib)
	cut := func(size int) {
		require.NoError(t, os.Truncate(r.m.P("big"), int64(size)))
		if size < len(r.model) {
			r.model = r.model[:size]
		} else {
			r.model = append(r.model, make([]byte, size-len(r.model))...)
		}
		r.same("big")
	}
	cut(3*mib + 5) // with the copy-up
	for _, size := range []int{3*mib + 70000, 2*mib + 1, 4 * mib, mib, mib, 2 * mib, 6 * mib} {
		cut(size)
	}
	r.write("big", []byte("in the middle"), 3*mib+12345)
	r.remount()
	r.same("big")
	cut(3*mib + 12346)
	cut(7 * mib)
	r.killDaemon()
	r.same("big")
	cut(0)
	cut(block)
	require.NoError(t, os.WriteFile(r.m.P("big"), []byte("short"), 0))
	r.model = []byte("short")
	r.same("big")
}

// Holes never fall through to the lower file.
func TestHoles(t *testing.T) {
	r := newRig(t, 2*mib)
	f, err := os.OpenFile(r.m.P("big"), os.O_RDWR, 0)
	require.NoError(t, err)
	punch := func(mode uint32, off, n int) {
		t.Helper()
		require.NoError(t, unix.Fallocate(int(f.Fd()), mode, int64(off), int64(n)))
		for i := off; i < min(off+n, len(r.model)); i++ {
			r.model[i] = 0
		}
		r.same("big")
	}
	const keep = unix.FALLOC_FL_KEEP_SIZE
	punch(unix.FALLOC_FL_PUNCH_HOLE|keep, block, 4*block)
	punch(unix.FALLOC_FL_PUNCH_HOLE|keep, 10*block+17, 3*block)
	punch(unix.FALLOC_FL_ZERO_RANGE, 20*block, 2*block+9)
	punch(unix.FALLOC_FL_PUNCH_HOLE|keep, 30*block, 8*block)

	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE)
	require.NoError(t, err)
	require.EqualValues(t, block, at)
	at, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	require.NoError(t, err)
	require.EqualValues(t, 5*block, at)
	_, err = unix.Seek(int(f.Fd()), int64(30*block), unix.SEEK_DATA)
	require.Equal(t, unix.ENXIO, err)

	require.NoError(t, f.Close())
	r.killDaemon()
	r.killPool()
	r.same("big")
}

// The holes of a lower file stay holes.
func TestLowerHoles(t *testing.T) {
	r := newRig(t, mib)
	f, err := os.Create(r.P("l", "sparse"))
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("data"), 4*mib)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(8*mib))
	want, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, os.Chmod(r.m.P("sparse"), 0600))
	r.isStub("sparse")
	g, err := os.Open(r.m.P("sparse"))
	require.NoError(t, err)
	defer g.Close()
	at, err := unix.Seek(int(g.Fd()), 0, unix.SEEK_DATA)
	require.NoError(t, err)
	require.Equal(t, want, at)
}

// Handles and mappings from before the copy-up see what comes after it.
func TestOldHandles(t *testing.T) {
	r := newRig(t, mib)
	old, err := os.Open(r.m.P("big"))
	require.NoError(t, err)
	defer old.Close()
	mem, err := unix.Mmap(int(old.Fd()), 0, mib, unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	defer unix.Munmap(mem)
	require.Equal(t, r.model[5000], mem[5000])
	r.write("big", []byte("changed"), 5000)
	got := make([]byte, 7)
	_, err = old.ReadAt(got, 5000)
	require.NoError(t, err)
	require.Equal(t, "changed", string(got))
	require.Equal(t, "changed", string(mem[5000:5007]))

	w, err := os.OpenFile(r.m.P("big"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer w.Close()
	mw, err := unix.Mmap(int(w.Fd()), 0, mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	copy(mw[700000:], "by mapping")
	copy(r.model[700000:], "by mapping")
	require.NoError(t, unix.Msync(mw, unix.MS_SYNC))
	require.NoError(t, unix.Munmap(mw))
	r.same("big")
}

// The device goes with the last name and the last handle.
func TestUnlink(t *testing.T) {
	r := newRig(t, mib)
	r.write("big", []byte("x"), 1)
	require.NoError(t, os.Link(r.m.P("big"), r.m.P("second")))
	require.NoError(t, os.Remove(r.m.P("big")))
	r.same("second")
	f, err := os.OpenFile(r.m.P("second"), os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, os.Remove(r.m.P("second")))
	_, err = f.WriteAt([]byte("without a name"), mib-3)
	require.NoError(t, err)
	got := make([]byte, 14)
	_, err = f.ReadAt(got, mib-3)
	require.NoError(t, err)
	require.Equal(t, "without a name", string(got))
	require.Len(t, r.devices(), 1)
	require.NoError(t, f.Close())
	r.eventuallyDevices(0)

	require.NoError(t, os.WriteFile(r.P("l", "victim"), noise(5, mib), 0644))
	require.NoError(t, os.Chmod(r.m.P("victim"), 0600))
	r.eventuallyDevices(1)
	require.NoError(t, os.WriteFile(r.m.P("new"), []byte("new"), 0644))
	require.NoError(t, os.Rename(r.m.P("new"), r.m.P("victim")))
	r.eventuallyDevices(0)
}

// A file that is open and has no name when the daemon is killed leaves nothing.
func TestUnfinished(t *testing.T) {
	r := newRig(t, mib)
	require.NoError(t, os.Chmod(r.m.P("big"), 0600))
	require.NoError(t, os.WriteFile(r.P("l", "kept"), r.model, 0644))
	require.NoError(t, os.Chmod(r.m.P("kept"), 0600))
	f, err := os.Open(r.m.P("big"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(r.m.P("big")))
	require.Len(t, r.devices(), 2)
	r.m.Died()
	require.NoError(t, unix.Kill(r.m.Pid, unix.SIGKILL))
	f.Close()
	require.True(t, harness.Eventually(5*time.Second, func() bool { return !harness.Alive(r.m.Pid) }))
	harness.Detach(t, r.m.Point)
	r.launcherGone()
	require.Len(t, r.devices(), 2)
	r.launcherGone()
	r.m = r.Mount(r.opts)
	r.eventuallyDevices(1)
	r.same("kept")
}

// A stub that was copied by hand is another file from then on.
func TestCopiedStub(t *testing.T) {
	r := newRig(t, mib)
	r.write("big", []byte("before"), 100)
	r.m.Unmount()
	r.launcherGone()
	r.Sh("cp -a u/big u/copy")
	require.Equal(t, stubAttr(t, r.P("u", "big")), stubAttr(t, r.P("u", "copy")))
	r.m = r.Mount(r.opts)
	r.same("copy")
	first := append([]byte(nil), r.model...)
	r.write("copy", []byte("the copy's"), 100)
	r.same("copy")
	second := r.model
	r.model = first
	r.same("big")
	r.write("big", []byte("the first's"), 300)
	r.same("big")
	require.NoError(t, os.Remove(r.m.P("big")))
	r.eventuallyDevices(1)
	r.model = second
	r.same("copy")
	r.remount()
	r.same("copy")
	require.NotEqual(t, stubAttr(t, r.P("u", "big")), stubAttr(t, r.P("u", "copy")))
}

// So is every file of an upper that was copied with its pool.
func TestCopiedUpper(t *testing.T) {
	r := newRig(t, mib)
	r.write("big", []byte("before"), 100)
	r.m.Unmount()
	r.launcherGone()
	r.Sh("cp -a u u2; mkdir w2 m2")
	r.m = r.Mount(r.opts)
	other := *r
	other.model = append([]byte(nil), r.model...)
	other.m = r.MountOn(r.P("m2"), "lowerdir="+r.P("l")+",upperdir="+r.P("u2")+",workdir="+r.P("w2"), forced)
	other.write("big", []byte("in the copy"), 100)
	r.write("big", []byte("in the first"), 500)
	other.same("big")
	r.same("big")
}

// Without the lower file, or with another in its place, or without the device,
// nothing is guessed; and the file can still be removed.
func TestLost(t *testing.T) {
	r := newRig(t, mib)
	r.write("big", []byte("x"), 1)
	r.m.Unmount()
	fails := func(word string) {
		t.Helper()
		_, err := os.ReadFile(r.m.P("big"))
		require.Equal(t, unix.EIO, errnoOf(err))
		s := r.status()
		require.True(t, contains(s.Troubles, "big") && contains(s.Troubles, word), "%v", s.Troubles)
	}
	lower := r.P("l", "big")
	fi, err := os.Stat(lower)
	require.NoError(t, err)
	now := time.Now()
	require.NoError(t, os.Chtimes(lower, now, now))
	r.m = r.Mount(r.opts)
	fails("has changed since it was copied up")
	r.m.Unmount()
	require.NoError(t, os.Rename(lower, r.P("l", "elsewhere")))
	r.m = r.Mount(r.opts)
	fails("is in no branch below")
	r.m.Unmount()
	require.NoError(t, os.Rename(r.P("l", "elsewhere"), lower))
	require.NoError(t, os.Chtimes(lower, fi.ModTime(), fi.ModTime()))
	r.m = r.Mount(r.opts)
	r.same("big")
	r.m.Unmount()
	r.launcherGone()

	name := r.devices()[0].Name
	res := r.Layerfs("thin", "rm", r.pool(), name)
	require.Zero(t, res.Code, res.Stderr)
	r.launcherGone()
	r.m = r.Mount(r.opts)
	fails(name)
	_, err = os.Stat(r.m.P("big"))
	require.Equal(t, unix.EIO, errnoOf(err))
	require.NoError(t, os.Remove(r.m.P("big")))
	require.NoFileExists(t, r.m.P("big"))
}

// The lowers may be somewhere else.
func TestMovedLower(t *testing.T) {
	r := newRig(t, mib)
	r.write("big", []byte("x"), 1)
	r.m.Unmount()
	require.NoError(t, os.Rename(r.P("l"), r.P("moved")))
	r.opts = "lowerdir=" + r.P("l2") + ":" + r.P("moved") + ",upperdir=" + r.P("u") + ",workdir=" + r.P("w") + "," + forced
	r.m = r.Mount(r.opts)
	r.same("big")
}

// Renamed, linked and hidden by a whole history of names it stays one file.
func TestNames(t *testing.T) {
	r := newRig(t, mib)
	require.NoError(t, os.Link(r.P("l", "big"), r.P("l", "same")))
	r.remount()
	r.write("big", []byte("by one name"), 10)
	r.same("same")
	r.write("same", []byte("by the other"), 90000)
	r.same("big")
	require.NoError(t, os.Mkdir(r.m.P("d"), 0755))
	require.NoError(t, os.Rename(r.m.P("same"), r.m.P("d", "x")))
	require.NoError(t, os.Link(r.m.P("d", "x"), r.m.P("y")))
	require.NoError(t, os.Remove(r.m.P("big")))
	r.remount()
	r.same("y")
	r.same(filepath.Join("d", "x"))
	require.NoError(t, os.Remove(r.m.P("y")))
	require.NoError(t, os.Remove(r.m.P("d", "x")))
	r.eventuallyDevices(0)
}
