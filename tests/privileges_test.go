package tests

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// as runs fn with the identity of an ordinary user in a thread of its own,
// which ends with fn.
func as(t *testing.T, uid, gid int, fn func() error) error {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		for _, call := range []func() unix.Errno{
			func() unix.Errno { _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); return e },
			func() unix.Errno {
				_, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
				return e
			},
			func() unix.Errno {
				_, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
				return e
			},
		} {
			if e := call(); e != 0 {
				result <- e
				return
			}
		}
		result <- fn()
	}()
	return <-result
}

func mode(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return st.Mode & 07777
}

// xfstests generic/683 to 685: fallocate and copy_file_range say nothing of
// the caller's privileges, and a daemon that is root kept the bits. Nor did a
// write of somebody outside the group clear a set-group-id bit that does not
// mean execution.
func TestDataChangesClearSetUserID(t *testing.T) {
	harness.RequireRoot(t)
	e := harness.New(t).Tree("l", "source="+strings.Repeat("x", 8192))
	m := e.Mount(e.RW("suid,dev"))
	for name, change := range map[string]func(fd int) error{
		"write":     func(fd int) error { _, err := unix.Pwrite(fd, []byte("new"), 0); return err },
		"truncate":  func(fd int) error { return unix.Ftruncate(fd, 1) },
		"fallocate": func(fd int) error { return unix.Fallocate(fd, 0, 0, 65536) },
		"punch hole": func(fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
		},
		"copy_file_range": func(fd int) error {
			src, err := unix.Open(m.P("source"), unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(src)
			_, err = unix.CopyFileRange(src, nil, fd, nil, 8192, 0)
			return err
		},
	} {
		for _, c := range []struct{ was, want uint32 }{{06777, 0777}, {04666, 0666}, {02676, 0676}, {02666, 0666}, {01666, 01666}} {
			p := m.P("f")
			require.NoError(t, os.WriteFile(p, make([]byte, 8192), 0600))
			require.NoError(t, unix.Chmod(p, c.was))
			require.NoError(t, as(t, 12345, 12345, func() error {
				fd, err := unix.Open(p, unix.O_RDWR, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return change(fd)
			}), name)
			require.Equal(t, c.want, mode(t, p), "%s of %o", name, c.was)
			require.NoError(t, os.Remove(p))
		}
	}
}

// xfstests generic/444: what a user made in a set-group-id directory with a
// default ACL got all the permissions asked for, since the bit that chown
// clears was put back with them.
func TestDefaultACLInSetGroupIDDirectory(t *testing.T) {
	harness.RequireRoot(t)
	harness.RequireTool(t, "setfacl", "acl")
	e := harness.New(t)
	m := e.Mount(e.RW("suid,dev"))
	e.Sh("mkdir m/d && chgrp 4242 m/d && setfacl -d -m u::rwx,g::r-x,o::--- m/d && chmod 2777 m/d")
	require.NoError(t, as(t, 12345, 12345, func() error {
		if err := unix.Mkdir(m.P("d/dir"), 0777); err != nil {
			return err
		}
		if err := unix.Mknod(m.P("d/pipe"), unix.S_IFIFO|0666, 0); err != nil {
			return err
		}
		fd, err := unix.Open(m.P("d/file"), unix.O_CREAT|unix.O_WRONLY, 0777)
		unix.Close(fd)
		return err
	}))
	require.Equal(t, uint32(02750), mode(t, m.P("d/dir")))
	require.Equal(t, uint32(0640), mode(t, m.P("d/pipe")))
	require.Equal(t, uint32(0750), mode(t, m.P("d/file")))
}

// sealed skips where the test's file system has no such flags.
func sealed(t *testing.T, e *harness.Env, flag string, paths ...string) {
	t.Helper()
	harness.RequireRoot(t)
	harness.RequireTool(t, "chattr", "e2fsprogs")
	for _, p := range paths {
		if r := e.Cmd(nil, "chattr", "+"+flag, p); r.Code != 0 {
			t.Skipf("chattr +%s: %s", flag, r.Stderr)
		}
		t.Cleanup(func() { e.Cmd(nil, "chattr", "-"+flag, p) })
	}
}

// writeTo opens p with the flags and writes to it.
func writeTo(p string, flags int) error {
	f, err := os.OpenFile(p, flags, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("2\n")
	f.Close()
	return err
}

// xfstests generic/079, but for where it is refused: FUSE does not tell the kernel
// about such files, and the kernel does not tell us that they are opened.
func TestImmutableFiles(t *testing.T) {
	e := harness.New(t).Tree("l", "low=1\nlowdir/f=1\nother=1")
	m := e.Mount(e.RW())
	e.Sh("echo 1 > m/up; mkdir m/updir; echo 1 > m/updir/f; mkdir m/full m/full/d; echo 1 > m/full/d/f")
	sealed(t, e, "i", "l/low", "l/lowdir", "m/up", "m/updir", "m/full")
	for _, f := range []string{"low", "up"} {
		p := m.P(f)
		require.ErrorIs(t, writeTo(p, os.O_WRONLY), unix.EPERM, f)
		_, err := os.OpenFile(p, os.O_RDONLY|os.O_TRUNC, 0)
		require.ErrorIs(t, err, unix.EPERM, f)
		for name, err := range map[string]error{
			"chmod": unix.Chmod(p, 0600), "unlink": unix.Unlink(p), "rename": unix.Rename(p, m.P("new")),
			"link": unix.Link(p, m.P("new")), "setxattr": unix.Setxattr(p, "user.a", nil, 0),
			"rename over it": unix.Rename(m.P("other"), p),
		} {
			require.ErrorIs(t, err, unix.EPERM, "%s %s", name, f)
		}
		require.Equal(t, "1", strings.TrimSpace(read(t, p)))
	}
	for _, d := range []string{"lowdir", "updir"} {
		require.ErrorIs(t, unix.Mkdir(m.P(d, "new"), 0700), unix.EPERM)
		require.ErrorIs(t, unix.Unlink(m.P(d, "f")), unix.EPERM)
		require.ErrorIs(t, unix.Rmdir(m.P(d)), unix.EPERM)
	}
	require.ErrorIs(t, unix.Rmdir(m.P("full/d")), unix.EPERM, "that it is not empty does not matter yet")
	e.Sh("chattr -i m/low && echo 2 >> m/low && chattr +i m/low && lsattr m/low | grep -q i-") // the copy's flag
	require.Equal(t, "1", read(t, e.P("l/low")))
	e.Sh("chattr -i m/low")
}

func TestAppendOnlyFiles(t *testing.T) {
	e := harness.New(t).Tree("l", "low=1")
	m := e.Mount(e.RW())
	e.Sh("echo 1 > m/up")
	sealed(t, e, "a", "l/low", "m/up")
	require.ErrorIs(t, writeTo(m.P("up"), os.O_WRONLY), unix.EPERM)
	e.Sh("echo 2 >> m/up")
	require.Equal(t, "1\n2\n", read(t, m.P("up")))
	require.ErrorIs(t, unix.Truncate(m.P("up"), 0), unix.EPERM)
	require.ErrorIs(t, unix.Unlink(m.P("up")), unix.EPERM)
	require.ErrorIs(t, writeTo(m.P("low"), os.O_WRONLY|os.O_APPEND), unix.EPERM, "a copy would not be append-only")
}

// xfstests generic/277: chattr gives a new ctime, but the kernel had the old one.
func TestChattrChangesCtime(t *testing.T) {
	e := harness.New(t)
	m := e.Mount(e.RW())
	e.Sh("echo 1 > m/f")
	ctime := func() time.Time {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(m.P("f"), &st))
		return time.Unix(st.Ctim.Unix())
	}
	before := ctime()
	time.Sleep(20 * time.Millisecond) // more than a tick of the clock of inodes
	sealed(t, e, "A", "m/f")
	require.Greater(t, ctime(), before)
}

// xfstests generic/003: reading through the mount changes no access time in a
// lower, and none at all with noatime.
func TestAccessTimes(t *testing.T) {
	e := harness.New(t).Tree("l", "d/f=1").Tree("u", "d/up=1")
	e.Sh("find l u -exec touch -a -d 2001-01-01 {} +")
	atime := func(path string) int64 {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(e.P(path), &st))
		return st.Atim.Sec
	}
	old := atime("l/d")
	for _, opts := range []string{"noatime", "strictatime"} {
		m := e.Mount(e.RW(opts))
		e.Sh("cat m/d/f m/d/up; ls -lR m")
		first := harness.Stat(t, m.P("d/up")).Atim
		time.Sleep(20 * time.Millisecond) // more than a tick of the clock of inodes
		e.Sh("cat m/d/f m/d/up")
		require.Equal(t, opts == "noatime", first == harness.Stat(t, m.P("d/up")).Atim, "reading a second time with %s", opts)
		m.Unmount()
		for _, p := range []string{"l", "l/d", "l/d/f"} {
			require.Equal(t, old, atime(p), "%s with %s", p, opts)
		}
		require.Equal(t, opts == "noatime", atime("u/d/up") == old, "u/d/up with %s", opts)
	}
}

// xfstests generic/426, 467 and 477: file handles went stale as soon as the
// kernel forgot the inode. Now there are none to be had.
func TestNoFileHandles(t *testing.T) {
	harness.RequireRoot(t) // who alone could open one
	e := harness.New(t).Tree("l", "f=1")
	m := e.Mount(e.RW())
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, m.P("f"), 0)
	if err != nil {
		require.ErrorIs(t, err, unix.EOPNOTSUPP)
		return
	}
	at, err := unix.Open(m.Point, unix.O_RDONLY, 0)
	require.NoError(t, err)
	defer unix.Close(at)
	fd, err := unix.OpenByHandleAt(at, h, unix.O_RDONLY)
	unix.Close(fd)
	require.NoError(t, err, "what can be asked for can be used")
}

// With noatime a file of somebody else's is opened a second time, since
// O_NOATIME is the owner's; that it may be written anywhere must not change.
func TestNoAtimeOnFilesOfOthers(t *testing.T) {
	harness.RequireRoot(t)
	e := harness.New(t).Tree("u", "f=0123456789 !0666")
	for _, d := range []string{"u", "w", "m"} {
		require.NoError(t, os.Chown(e.P(d), harness.Ordinary, harness.Ordinary))
	}
	r := e.Cmd(harness.AsOrdinary, harness.Bin(), "-o", e.RW("noatime"), e.P("m"))
	require.Zero(t, r.Code, r.Stderr)
	r = e.Cmd(harness.AsOrdinary, "sh", "-ec", "printf X | dd of=m/f bs=1 seek=3 conv=notrunc 2>/dev/null; fusermount3 -u m")
	require.Zero(t, r.Code, r.Stderr)
	require.Equal(t, "012X456789", read(t, e.P("u/f")))
	require.True(t, harness.Eventually(harness.Moment, func() bool { return len(harness.Daemons(e.P("m"))) == 0 }))
}
