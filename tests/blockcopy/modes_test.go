package blockcopy

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// Who changes the content of a file takes its privileges away.
func TestPrivileges(t *testing.T) {
	harness.RequireRoot(t)
	harness.RequireTool(t, "setcap", "libcap2-bin")
	r := newRig(t, mib)
	r.Sh("setcap cap_net_raw+ep l/big; chmod u+s l/big")
	r.remount()
	require.NoError(t, os.Chmod(r.m.P("big"), 0755|os.ModeSetuid))
	r.isStub("big")
	require.Contains(t, r.Sh("getcap m/big"), "cap_net_raw")
	res := r.Cmd(harness.AsOrdinary, "sh", "-c", "true < m/big")
	require.Zero(t, res.Code, res.Stderr)
	r.Sh("chmod 4757 m/big")
	res = r.Cmd(harness.AsOrdinary, "sh", "-c", "printf zz | dd of=m/big bs=1 seek=9 conv=notrunc status=none")
	require.Zero(t, res.Code, res.Stderr)
	copy(r.model[9:], "zz")
	r.same("big")
	fi, err := os.Stat(r.m.P("big"))
	require.NoError(t, err)
	require.Zero(t, fi.Mode()&os.ModeSetuid)
	require.Empty(t, r.Sh("getcap m/big"))
}

// A file that its owner may not read is still that file.
func TestUnreadable(t *testing.T) {
	r := newRig(t, mib)
	r.write("big", []byte("x"), 3)
	f, err := os.OpenFile(r.m.P("big"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, os.Chmod(r.m.P("big"), 0))
	fi, err := os.Stat(r.m.P("big"))
	require.NoError(t, err)
	require.EqualValues(t, mib, fi.Size())
	_, err = f.WriteAt([]byte("by the old handle"), 500)
	require.NoError(t, err)
	copy(r.model[500:], "by the old handle")
	require.NoError(t, f.Close())
	r.remount()
	fi, err = os.Stat(r.m.P("big"))
	require.NoError(t, err)
	require.EqualValues(t, mib, fi.Size())
	require.NoError(t, os.Chmod(r.m.P("big"), 0600))
	r.same("big")
}

// AUFS's way to name branches, and its branches that come, go and change.
func TestBranches(t *testing.T) {
	r := newRig(t, mib)
	r.m.Unmount()
	for _, d := range []string{"u3"} {
		require.NoError(t, os.Mkdir(r.P(d), 0755))
	}
	r.opts = "br=" + r.P("u") + "=rw:" + r.P("l") + "=ro," + forced
	r.m = r.Mount(r.opts)
	r.write("big", []byte("one"), 40)
	r.isStub("big")
	remount := func(what string) {
		t.Helper()
		res := r.Layerfs("remount", "-o", what, r.m.Point)
		require.Zero(t, res.Code, res.Stderr)
	}
	f, err := os.Open(r.m.P("big"))
	require.NoError(t, err)
	remount("mod:" + r.P("u") + "=ro,prepend:" + r.P("u3") + "=rw")
	r.same("big")
	remount("mod:" + r.P("u") + "=rw")
	r.write("big", []byte("two"), 90000)
	r.same("big")
	got := make([]byte, 3)
	_, err = f.ReadAt(got, 90000)
	require.NoError(t, err)
	require.Equal(t, "two", string(got))
	require.NoError(t, f.Close())
	r.isStub("big")
	// Renamed where something above covers it: it moves up, whole.
	require.NoError(t, os.Rename(r.m.P("big"), r.m.P("other")))
	r.same("other")
	remount("mod:" + r.P("u") + "=ro")
	r.write("other", []byte("three"), 7)
	r.same("other")
	require.NoError(t, os.Remove(r.m.P("other")))
}

// A branch of which stubs show the rest stays, until they are settled, gone, or
// another branch has the same file.
func TestOriginStays(t *testing.T) {
	r := newRig(t, mib)
	r.m.Unmount()
	r.Sh("cp -a l/big l/other; cp -a l l3")
	r.opts = "br=" + r.P("u") + "=rw:" + r.P("l") + "=ro:" + r.P("l2") + "=ro," + forced
	r.m = r.Mount(r.opts)
	require.NoError(t, os.MkdirAll(r.m.P("d"), 0755))
	r.write("big", []byte("in u"), 40)
	require.NoError(t, os.Rename(r.m.P("big"), r.m.P("d", "name")))
	remount := func(what string) harness.Result { return r.Layerfs("remount", "-o", what, r.m.Point) }
	refused := func(what, says string) {
		t.Helper()
		res := remount(what) // which tries it for a second
		require.Equal(t, 4, res.Code, res.Stderr)
		require.Contains(t, res.Stderr, "branch "+r.P("l")+" is in use: "+says)
	}
	done := func(what string) {
		t.Helper()
		res := remount(what)
		require.Zero(t, res.Code, res.Stderr)
	}
	// Above the stub it is of no use.
	refused("del:"+r.P("l")+",prepend:"+r.P("l")+"=ro", "d/name")
	done("del:" + r.P("l2"))
	done("del:" + r.P("l") + ",append:" + r.P("l3") + "=ro")
	r.same("d/name")
	done("del:" + r.P("l3") + ",append:" + r.P("l") + "=ro")

	f, err := os.Open(r.m.P("d", "name"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(r.m.P("d", "name")))
	refused("del:"+r.P("l"), "a removed file")
	require.NoError(t, f.Close())
	require.True(t, harness.Eventually(2*harness.Moment, func() bool { return remount("del:"+r.P("l")).Code == 0 }))

	done("append:" + r.P("l") + "=ro")
	require.NoError(t, os.Chmod(r.m.P("other"), 0600))
	r.model = noise(1, mib)
	r.isStub("other")
	res := r.Layerfs("settle", r.m.Point)
	require.Zero(t, res.Code, res.Stderr)
	done("del:" + r.P("l"))
	r.same("other")
}

// With the identities of files in attributes, as containers-storage keeps them.
func TestOverrides(t *testing.T) {
	r := newRig(t, mib, "xattr_permissions=2")
	require.NoError(t, os.Chmod(r.m.P("big"), 0741))
	r.write("big", []byte("x"), 3)
	r.remount()
	r.same("big")
	fi, err := os.Stat(r.m.P("big"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0741), fi.Mode())
	r.isStub("big")
}

// A user cannot read the records of root's branches, and is told so.
func TestRootsBranch(t *testing.T) {
	harness.RequireRoot(t)
	r := newRig(t, mib)
	r.write("big", []byte("x"), 3)
	r.m.Unmount()
	r.launcherGone()
	require.True(t, strings.HasPrefix(r.Sh("getfattr -d -m - u/big | grep stub"), "trusted."))
	r.Sh("mkdir um && chown 65534 um")
	res := r.Cmd(harness.AsOrdinary, harness.Bin(), "-o", "lowerdir="+r.P("u")+":"+r.P("l"), r.P("um"))
	require.Zero(t, res.Code, res.Stderr)
	defer r.Sh("fusermount3 -u um")
	res = r.Cmd(harness.AsOrdinary, "cat", r.P("um", "big"))
	require.NotZero(t, res.Code)
	require.Contains(t, res.Stderr, unix.EIO.Error()[1:])
}
