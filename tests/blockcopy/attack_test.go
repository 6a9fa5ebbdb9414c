package blockcopy

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

func reader(s string) io.Reader { return strings.NewReader(s) }

// Who is inside the mount reaches no other file's blocks: not by the text of a
// stub, not by its attribute, not by exchanging, linking or copying files.
func TestAttack(t *testing.T) {
	r := newRig(t, mib)
	r.write("big", []byte("secret"), 100)
	text, err := os.ReadFile(r.P("u", "big"))
	require.NoError(t, err)
	value := stubAttr(t, r.P("u", "big"))

	require.NoError(t, os.WriteFile(r.m.P("fake"), text, 0644))
	got, err := os.ReadFile(r.m.P("fake"))
	require.NoError(t, err)
	requireSame(t, text, got, "a file with the text of a stub")
	for _, ns := range []string{"user.", "trusted."} {
		for _, name := range []string{"fake", "big"} {
			require.Equal(t, unix.EPERM, unix.Lsetxattr(r.m.P(name), ns+"layerfs.stub", []byte(value), 0), ns+name)
			require.Error(t, unix.Lremovexattr(r.m.P(name), ns+"layerfs.stub"))
			_, err := unix.Lgetxattr(r.m.P(name), ns+"layerfs.stub", make([]byte, 500))
			require.Equal(t, unix.ENODATA, err)
		}
	}
	for _, name := range harness.ListXattr(t, r.m.P("big")) {
		require.NotContains(t, name, "layerfs")
	}
	// cp -a, tar and the like copy content.
	r.Sh("cp -a m/big m/copy; ln m/big m/link")
	require.Empty(t, stubAttr(t, r.P("u", "copy")))
	require.NoError(t, unix.Renameat2(unix.AT_FDCWD, r.m.P("copy"), unix.AT_FDCWD, r.m.P("big"), unix.RENAME_EXCHANGE))
	require.NoError(t, unix.Renameat2(unix.AT_FDCWD, r.m.P("fake"), unix.AT_FDCWD, r.m.P("link"), unix.RENAME_EXCHANGE))
	r.remount()
	r.same("big")
	r.same("copy")
	r.same("fake")
	got, err = os.ReadFile(r.m.P("link"))
	require.NoError(t, err)
	requireSame(t, text, got, "a file with the text of a stub")
	_, err = os.Stat(r.m.P(".wh..wh.layerfs"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = os.ReadDir(r.m.P(".wh..wh.layerfs", "pool"))
	require.Error(t, err)
}

// A stub whose key is not that of the device reaches nothing, though somebody
// has put it into the upper from outside.
func TestForeignKey(t *testing.T) {
	r := newRig(t, mib)
	r.write("big", []byte("secret"), 100)
	r.m.Unmount()
	value := strings.Fields(stubAttr(t, r.P("u", "big")))
	value[2] = strings.Repeat("0", 32)
	ns := harness.TrustedNS()
	for name, text := range map[string]string{
		"other": strings.Join(value, " "), "nonsense": "1 2 3", "long": strings.Repeat("x", 400),
	} {
		require.NoError(t, os.WriteFile(r.P("u", name), []byte("text"), 0644))
		require.NoError(t, unix.Lsetxattr(r.P("u", name), ns+"layerfs.stub", []byte(text), 0))
	}
	r.m = r.Mount(r.opts)
	for _, name := range []string{"other", "nonsense", "long"} {
		_, err := os.ReadFile(r.m.P(name))
		require.Equal(t, unix.EIO, errnoOf(err), name)
		require.Equal(t, unix.EIO, errnoOf(os.WriteFile(r.m.P(name), []byte("x"), 0)), name)
	}
	r.same("big")
}

// A full disk is ENOSPC to the writer; all else goes on.
func TestFull(t *testing.T) {
	harness.RequireRoot(t)
	e := harness.New(t)
	e.Sh("mkdir small && mount -t tmpfs -o size=96M tmpfs small && mkdir small/u small/w")
	defer func() {
		require.True(t, harness.Eventually(5*time.Second, func() bool { return unix.Unmount(e.P("small"), 0) == nil }))
	}()
	r := &rig{Env: e, t: t, model: noise(1, 128*mib)}
	require.NoError(t, os.WriteFile(r.P("l", "big"), r.model, 0644))
	require.NoError(t, os.WriteFile(r.P("l", "other"), noise(2, mib), 0644))
	r.opts = "lowerdir=" + r.P("l") + ",upperdir=" + r.P("small", "u") + ",workdir=" + r.P("small", "w") + "," + forced
	r.m = r.Mount(r.opts)
	require.NoError(t, os.Chmod(r.m.P("other"), 0600))
	f, err := os.OpenFile(r.m.P("big"), os.O_RDWR, 0)
	require.NoError(t, err)
	n := 0
	for ; n < len(r.model); n += mib {
		data := noise(uint64(n), mib)
		k, err := unix.Pwrite(int(f.Fd()), data, int64(n)) // os.File does not tell how much was written
		copy(r.model[n:], data[:max(k, 0)])
		if err != nil {
			require.Equal(t, unix.ENOSPC, err)
			break
		}
		if k < mib {
			_, err = unix.Pwrite(int(f.Fd()), data[k:], int64(n+k))
			require.Equal(t, unix.ENOSPC, err)
			break
		}
	}
	t.Logf("full after %d MiB", n/mib)
	require.Less(t, n, 96*mib)
	require.Greater(t, n, 16*mib)
	r.same("big")
	// A block that is there already is written without space.
	_, err = f.WriteAt([]byte("in place"), 40*mib)
	require.NoError(t, err)
	copy(r.model[40*mib:], "in place")
	got, err := os.ReadFile(r.m.P("other"))
	require.NoError(t, err)
	requireSame(t, noise(2, mib), got, "other")
	// Space that is given back can be used.
	require.NoError(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 32*mib))
	clear(r.model[:32*mib])
	ok := harness.Eventually(5*time.Second, func() bool {
		_, err := f.WriteAt([]byte("again"), int64(100*mib))
		return err == nil
	})
	require.True(t, ok)
	require.NoError(t, f.Close())
	copy(r.model[100*mib:], "again")
	r.same("big")
	r.m.Unmount()
}
