package tests

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// What tests/parity has found, each in few lines.

// What replaced a whiteout was built in the work directory, and did not take
// what a set-group-id directory gives.
func TestSetGroupIDOverWhiteout(t *testing.T) {
	harness.RequireRoot(t)
	for _, dialect := range []string{"overlay", "aufs", "xattr"} {
		e := harness.New(t).Tree("l", "d/dir/\nd/file=1\nd/fifo|")
		m := e.Mount(e.RW("suid,dev,whiteout=" + dialect))
		e.Sh("chgrp 4242 m/d; chmod 2777 m/d; rm -r m/d/*; mkdir m/d/dir; echo 1 >m/d/file; mkfifo m/d/fifo")
		for _, name := range []string{"dir", "file", "fifo"} {
			require.EqualValues(t, 4242, harness.Stat(t, m.P("d", name)).Gid, "%s %s", dialect, name)
		}
		require.EqualValues(t, 02755, harness.Stat(t, m.P("d/dir")).Mode&07777, dialect)
	}
}

// The kernel asks to clear set-group-id with default ACLs too, which have
// nothing to do with it.
func TestDefaultACLKeepsSetGroupID(t *testing.T) {
	harness.RequireRoot(t)
	harness.RequireTool(t, "setfacl", "acl")
	e := harness.New(t)
	m := e.Mount(e.RW("suid,dev"))
	e.Sh("mkdir m/d; chown 12345:4242 m/d; chmod 2777 m/d; setfacl -d -m u:1:rwx m/d")
	value := make([]byte, 1000)
	n, err := unix.Getxattr(m.P("d"), "system.posix_acl_default", value)
	require.NoError(t, err)
	require.NoError(t, as(t, 12345, 12345, func() error {
		return unix.Setxattr(m.P("d"), "system.posix_acl_default", value[:n], 0)
	}))
	require.EqualValues(t, 02777, mode(t, m.P("d")))
}

// Each mount tries a rename in the upper and so gave its root a new time.
func TestMountKeepsTheTimeOfTheRoot(t *testing.T) {
	e := harness.New(t).Tree("l", "f=1\ng=>f")
	require.NoError(t, harness.SetTime(e.P("u"), harness.SomeTime))
	for range 2 {
		m := e.Mount(e.RW())
		require.Equal(t, harness.SomeTime.Unix(), harness.Stat(t, m.Point).Mtim.Sec)
		m.Unmount()
	}
	// So did the place where a copy without a name in the upper is kept.
	m := e.Mount(e.RW())
	require.NoError(t, os.Chmod(m.P("f"), 0600))
	require.NoError(t, harness.SetTime(m.Point, harness.SomeTime))
	require.NoError(t, os.Link(m.P("f"), m.P("other")))
	require.NoError(t, os.Remove(m.P("f")))
	require.NoError(t, harness.SetTime(m.Point, harness.SomeTime))
	m = m.Remount(e.RW())
	require.Equal(t, harness.SomeTime.Unix(), harness.Stat(t, m.Point).Mtim.Sec)
}

// A deleted file was given up when its last open file was closed, though
// somebody else held it by O_PATH.
func TestDeletedFileHeldByPath(t *testing.T) {
	e := harness.New(t).Tree("l", "low=1").Tree("u", "up=1")
	m := e.Mount(e.RW())
	for _, f := range []string{"low", "up"} {
		path, err := unix.Open(m.P(f), unix.O_PATH, 0)
		require.NoError(t, err)
		fd, err := unix.Open(m.P(f), unix.O_RDONLY, 0)
		require.NoError(t, err)
		require.NoError(t, os.Remove(m.P(f)))
		unix.Close(fd)
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(path, &st), f)
		require.EqualValues(t, 1, st.Size)
		data, err := os.ReadFile(harness.FdPath(path))
		require.NoError(t, err)
		require.Equal(t, "1", string(data))
		unix.Close(path)
	}
}

// After the deletion of the one name that had been looked up, a file showed
// no links, though it had more.
func TestLinksThatNobodyHasLookedUp(t *testing.T) {
	e := harness.New(t).Tree("l", "a=1\nd/b=>a\nd/c=>a")
	m := e.Mount(e.RW())
	fd, err := unix.Open(m.P("a"), unix.O_RDONLY, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, os.Remove(m.P("a")))
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	require.EqualValues(t, 2, st.Nlink)
	require.EqualValues(t, 2, harness.Stat(t, m.P("d/b")).Nlink)
}

// A truncation that copied the file up first left it truncated when a later
// step failed, with an error to the caller (tests/crash, TestFaults). Now the
// copy is made with its new length; set-user-id goes on the way.
func TestTruncatingCopyUp(t *testing.T) {
	harness.RequireRoot(t)
	for opts, size := range map[string]int64{"suid": 0, "dev": 3, "exec": 100000, "xattr_permissions=2": 4} {
		e := harness.New(t).Tree("l", "f=0123456789 !6777 ^1000000000")
		m := e.Mount(e.RW("suid,dev", opts))
		require.NoError(t, as(t, 12345, 12345, func() error { return unix.Truncate(m.P("f"), size) }))
		want := make([]byte, size)
		copy(want, "0123456789")
		require.Equal(t, string(want), read(t, m.P("f")))
		st := harness.Stat(t, m.P("f"))
		require.EqualValues(t, 0777, st.Mode&07777, opts)
		require.Greater(t, st.Mtim.Sec, int64(1000000000))
		m = m.Remount(e.RW(opts))
		require.Equal(t, string(want), read(t, m.P("f")))
		require.Equal(t, "0123456789", read(t, e.P("l/f")))
	}
}

// A directory that moves notes in the AUFS dialect, in a file inside, where its
// content is. That gave it a new time.
func TestRenameKeepsTheTimeOfTheDirectory(t *testing.T) {
	for _, dialect := range []string{"aufs", "xattr"} {
		e := harness.New(t).Tree("l", "d/f=1\nempty/")
		require.NoError(t, harness.SetTime(e.P("l/d"), harness.SomeTime))
		m := e.Mount(e.RW("whiteout=" + dialect))
		for _, to := range []string{"moved", "empty"} {
			require.NoError(t, unix.Rename(m.P("d"), m.P(to)))
			require.Equal(t, harness.SomeTime.Unix(), harness.Stat(t, m.P(to)).Mtim.Sec, "%s in %s", to, dialect)
			require.NoError(t, unix.Rename(m.P(to), m.P("d")))
		}
	}
}
