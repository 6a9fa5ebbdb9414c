package security

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// fileCap is cap_net_raw=ep, revision 2.
const fileCap = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func hasCap(t *testing.T, path string) bool {
	t.Helper()
	_, err := unix.Lgetxattr(path, "security.capability", make([]byte, 100))
	if err != unix.ENODATA {
		require.NoError(t, err)
	}
	return err == nil
}

// TestCopyUpNosuidLower: set-user-id bits and capabilities that mean nothing
// where they are must mean nothing after a copy-up (CVE-2023-0386, CVE-2016-1576).
func TestCopyUpNosuidLower(t *testing.T) {
	harness.RequireRoot(t)
	for _, flags := range []uintptr{unix.MS_NOSUID, 0} {
		e := harness.New(t)
		require.NoError(t, unix.Mount("tmpfs", e.P("l"), "tmpfs", flags, "mode=755"))
		defer unix.Unmount(e.P("l"), unix.MNT_DETACH)
		e.Tree("l", "suid=1 !6755\ncap=1 !0755\ndir/ !2755")
		require.NoError(t, unix.Setxattr(e.P("l/cap"), "security.capability", []byte(fileCap), 0))
		m := e.Mount(e.RW("suid,dev"))
		for _, f := range []string{"suid", "cap", "dir"} {
			require.NoError(t, unix.Setxattr(m.P(f), "user.x", nil, 0)) // which clears nothing itself
		}
		kept := flags == 0
		require.Equal(t, kept, harness.Stat(t, e.P("u/suid")).Mode&06000 == 06000, "set-user-id")
		require.Equal(t, kept, hasCap(t, e.P("u/cap")), "capability")
		require.NotZero(t, harness.Stat(t, e.P("u/dir")).Mode&unix.S_ISGID, "on a directory it means inheritance")
		require.Equal(t, harness.Stat(t, e.P("u/suid")).Mode, harness.Stat(t, m.P("suid")).Mode, "the mount shows what there is")
		m.Unmount()
		require.NoError(t, unix.Unmount(e.P("l"), 0))
	}
}

// TestCopyUpUnmappedOwner: the copy of a file whose owner the daemon's user
// namespace does not know belongs to the daemon, and must not be set-user-id
// for it.
func TestCopyUpUnmappedOwner(t *testing.T) {
	harness.RequireRoot(t) // who makes the files
	e := harness.New(t).Tree("l", "suid=1 !6755 ~12345:12345\ntaken=1 !6755 ~12345:12345")
	for _, d := range []string{"u", "w", "m"} {
		require.NoError(t, os.Chown(e.P(d), harness.Ordinary, harness.Ordinary))
	}
	r := e.Cmd(harness.AsOrdinary, "unshare", "-Urm", "sh", "-ec",
		harness.Bin()+` -o `+e.RW("suid,dev")+` m
		chmod 6755 m/suid 2>/dev/null && exit 9   # not his
		chown 0:0 m/taken # which the kernel allows to root of the mount's user namespace
		mv m/taken m/moved
		umount m`)
	require.Zero(t, r.Code, r.Stderr)
	for _, f := range []string{"moved"} {
		st := harness.Stat(t, e.P("u", f))
		require.EqualValues(t, harness.Ordinary, st.Uid)
		require.Zero(t, st.Mode&06000, "%s is %o", f, st.Mode)
	}
	require.True(t, harness.Eventually(harness.Moment, func() bool { return len(harness.Daemons(e.P("m"))) == 0 }))
}

// TestCopyUpCapabilities: a daemon without privileges gives no capabilities
// away (CVE-2021-3493, CVE-2023-2640), one with them keeps them.
func TestCopyUpCapabilities(t *testing.T) {
	harness.RequireRoot(t)
	e := harness.New(t).Tree("l", "cap=1 !0777")
	require.NoError(t, unix.Setxattr(e.P("l/cap"), "security.capability", []byte(fileCap), 0))
	m := e.Mount(e.RW("suid,dev"))
	require.NoError(t, os.Rename(m.P("cap"), m.P("moved")))
	require.True(t, hasCap(t, e.P("u/moved")))
	m.Unmount()

	e = harness.New(t).Tree("l", "cap=1 !0777")
	require.NoError(t, unix.Setxattr(e.P("l/cap"), "security.capability", []byte(fileCap), 0))
	for _, d := range []string{"l", "l/cap", "u", "w", "m"} {
		require.NoError(t, os.Chown(e.P(d), harness.Ordinary, harness.Ordinary))
	}
	require.NoError(t, unix.Setxattr(e.P("l/cap"), "security.capability", []byte(fileCap), 0)) // chown takes it away
	r := e.Cmd(harness.AsOrdinary, harness.Bin(), "-o", e.RW(), e.P("m"))
	require.Zero(t, r.Code, r.Stderr)
	r = e.Cmd(harness.AsOrdinary, "sh", "-ec", "mv m/cap m/moved; fusermount3 -u m")
	require.Zero(t, r.Code, r.Stderr)
	require.False(t, hasCap(t, e.P("u/moved")))
	require.True(t, harness.Eventually(harness.Moment, func() bool { return len(harness.Daemons(e.P("m"))) == 0 }))
}

// TestSetUserIDClearedOnChown: by the owner and by root, as chown(2) says.
func TestSetUserIDClearedOnChown(t *testing.T) {
	harness.RequireRoot(t)
	e := harness.New(t).Tree("l", "low=1 !6755").Tree("u", "up=1 !6755")
	m := e.Mount(e.RW("suid,dev"))
	for _, f := range []string{"low", "up"} {
		require.NoError(t, os.Chown(m.P(f), 1, 1))
		require.Zero(t, harness.Stat(t, m.P(f)).Mode&06000)
		require.Zero(t, harness.Stat(t, e.P("u", f)).Mode&06000)
	}
}

// TestOverrideGarbage: the attribute that holds owner and mode for
// xattr_permissions belongs to the owner of the file, who may write anything.
func TestOverrideGarbage(t *testing.T) {
	const attr = "user.containers.override_stat"
	for _, value := range []string{
		"", ":", "::", "0:0", "0:0:", "-1:0:0755", "0:0:9999", "4294967296:0:0644", "0:0:0644:block", "0:0:0644:char-1-3",
		"0:0:100644:regular", "x:y:z", "0:0:0644\x00:file", "0:0:0644:file:extra", "1:1:0177777777777", "0:0:04755:no-such-type",
	} {
		e := harness.New(t).Tree("l", "f=1 !0640\nd/ !0750")
		for _, p := range []string{"f", "d"} {
			require.NoError(t, unix.Setxattr(e.P("l", p), attr, []byte(value), 0))
		}
		require.NoError(t, unix.Setxattr(e.P("l"), attr, []byte("0:0:0755"), 0))
		m := e.Mount("lowerdir=" + e.P("l") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w"))
		st := harness.Stat(t, m.P("f"))
		require.Contains(t, []uint32{unix.S_IFREG, unix.S_IFBLK, unix.S_IFCHR}, st.Mode&unix.S_IFMT, "%q", value)
		require.EqualValues(t, unix.S_IFDIR, harness.Stat(t, m.P("d")).Mode&unix.S_IFMT, "%q", value)
		require.ErrorIs(t, unix.Setxattr(m.P("f"), attr, []byte("0:0:04755"), 0), unix.EPERM)
		m.Unmount()
	}
}

// TestAllowOtherOff: without allow_other nobody else gets in, root included.
func TestAllowOtherOff(t *testing.T) {
	harness.RequireRoot(t)
	e := harness.New(t).Tree("l", "f=1")
	for _, d := range []string{"u", "w", "m"} {
		require.NoError(t, os.Chown(e.P(d), harness.Ordinary, harness.Ordinary))
	}
	r := e.Cmd(harness.AsOrdinary, harness.Bin(), "-o", e.RW(), e.P("m"))
	require.Zero(t, r.Code, r.Stderr)
	_, err := os.ReadFile(e.P("m/f"))
	require.ErrorIs(t, err, unix.EACCES)
	r = e.Cmd(harness.AsOrdinary, "sh", "-ec", "test $(cat m/f) = 1; fusermount3 -u m")
	require.Zero(t, r.Code, r.Stderr)
	require.True(t, harness.Eventually(harness.Moment, func() bool { return len(harness.Daemons(e.P("m"))) == 0 }))
}

// TestFifoNoHang: nobody writes to a fifo of a lower; copying it up, or looking
// at it in all ways, must not wait for somebody to.
func TestFifoNoHang(t *testing.T) {
	e := harness.New(t).Tree("l", "fifo|\nd/fifo|")
	m := e.Mount(e.RW())
	r := e.Cmd(nil, "timeout", "20", "sh", "-ec", "cd m; ls -lR .; chmod 600 fifo; mv fifo moved; cp -a d copy; rm -r d; ln moved link; getfattr -d -m - moved")
	require.Zero(t, r.Code, r.Stderr)
	m.Unmount()
}

// TestOptionInjection: what is in a name never becomes an option of the mount.
func TestOptionInjection(t *testing.T) {
	e := harness.New(t).Tree("l,suid,dev", "f=1")
	require.NoError(t, os.Mkdir(e.P("m,allow_other"), 0755))
	r := e.Layerfs("-o", `fsname=x\,suid\,dev\,allow_other,lowerdir=`+e.P(`l\,suid\,dev`)+",upperdir="+e.P("u")+",workdir="+e.P("w")+",nosuid,nodev", e.P("m,allow_other"))
	require.Zero(t, r.Code, r.Stderr)
	e.Adopt(e.P("m,allow_other"))
	out, err := exec.Command("findmnt", "-no", "OPTIONS", e.P("m,allow_other")).Output()
	require.NoError(t, err)
	require.Contains(t, string(out), "nosuid,nodev")
	if !harness.Root() {
		require.NotContains(t, string(out), "allow_other")
	}
}
