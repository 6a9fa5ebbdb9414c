package tests

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// Every kind of copy-up keeps everything that it is not meant to change.
func TestCopyUpKeeps(t *testing.T) {
	for name, change := range map[string]func(p string) error{
		"by write": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("X"), 0)
				f.Close()
			}
			return err
		},
		"by chmod":    func(p string) error { return unix.Chmod(p, 0641) },
		"by setxattr": func(p string) error { return unix.Setxattr(p, "user.other", []byte("o"), 0) },
		"by link":     func(p string) error { return unix.Link(p, p+"-link") },
		"by rename":   func(p string) error { return unix.Rename(p, p) },
	} {
		t.Run(name, func(t *testing.T) {
			e := harness.New(t).Tree("l", "d/f=content !0640 @user.demo=v @user.empty= ^1234567890.123456789\nd/ !0751 ^1111111111.5")
			if harness.Root() {
				e.Tree("l", "d/f ~123:456 @trusted.demo=t\nd/ ~7:8")
				harness.RequireTool(t, "setcap", "libcap2-bin")
				if !strings.Contains(name, "write") { // a write clears it
					e.Sh("setcap cap_net_raw+ep l/d/f; chown -h 123:456 l/d/f; setcap cap_net_raw+ep l/d/f")
				}
				harness.MkTree(t, e.P("l"), "d/f ^1234567890.123456789")
			}
			want := harness.Stat(t, e.P("l/d/f"))
			attrs := harness.ListXattr(t, e.P("l/d/f"))
			dir := harness.Stat(t, e.P("l/d"))
			m := e.Mount(e.RW())
			require.NoError(t, change(m.P("d/f")))
			for i := 0; i < 2; i++ {
				got := harness.Stat(t, m.P("d/f"))
				require.Equal(t, want.Uid, got.Uid)
				require.Equal(t, want.Gid, got.Gid)
				require.Equal(t, want.Size, got.Size)
				if !strings.Contains(name, "write") {
					require.Equal(t, want.Mtim, got.Mtim, "to the nanosecond")
				}
				if !strings.Contains(name, "chmod") {
					require.Equal(t, want.Mode, got.Mode)
				}
				for _, a := range attrs {
					require.Equal(t, harness.GetXattr(t, e.P("l/d/f"), a), harness.GetXattr(t, m.P("d/f"), a), a)
				}
				g := harness.Stat(t, m.P("d"))
				require.Equal(t, []any{dir.Mode, dir.Uid, dir.Gid}, []any{g.Mode, g.Uid, g.Gid}, "the directory copied up on the way")
				if name != "by link" {
					require.Equal(t, dir.Mtim, g.Mtim, "its mtime")
				}
				m = m.Remount(e.RW())
			}
		})
	}
}

func TestCopyUpKeepsACLs(t *testing.T) {
	harness.RequireTool(t, "setfacl", "acl")
	e := harness.New(t).Tree("l", "d/f=1")
	e.Sh("setfacl -m u:1234:rw,g:77:r l/d/f; setfacl -m u:1234:rwx -d -m u:55:r l/d")
	acl := func(p string) string { return e.Sh("getfacl -cpn " + p + " | grep -v '^$'") }
	f, d := acl("l/d/f"), acl("l/d")
	m := e.Mount(e.RW())
	require.Equal(t, f, acl(m.P("d/f")))
	write(t, m.P("d/f"), "2")
	write(t, m.P("d/new"), "")
	for i := 0; i < 2; i++ {
		require.Equal(t, f, acl(m.P("d/f")))
		require.Equal(t, d, acl(m.P("d")))
		require.Contains(t, acl(m.P("d/new")), "user:55:r--", "inherited from the default ACL")
		m = m.Remount(e.RW())
	}
	e.Sh("setfacl -b " + m.P("d/f"))
	require.NotContains(t, acl(m.P("d/f")), "1234")
}

func TestSparseFiles(t *testing.T) {
	e := harness.New(t)
	e.Sh("truncate -s 64M l/f; printf data | dd of=l/f bs=1 seek=33554432 conv=notrunc status=none; sync l/f")
	m := e.Mount(e.RW())
	require.NoError(t, os.Chmod(m.P("f"), 0600))
	st := harness.Stat(t, e.P("u/f"))
	require.EqualValues(t, 64<<20, st.Size)
	require.Less(t, st.Blocks*512, int64(1<<20), "holes stay holes")
	f, err := os.Open(m.P("f"))
	require.NoError(t, err)
	defer f.Close()
	at, err := f.Seek(0, unix.SEEK_DATA)
	require.NoError(t, err)
	require.EqualValues(t, 32<<20, at)
	at, err = f.Seek(at, unix.SEEK_HOLE)
	require.NoError(t, err)
	require.EqualValues(t, 32<<20+page, at)
}

func TestSpecialFiles(t *testing.T) {
	e := harness.New(t).Tree("l", "fifo| ^1000000000\nlink->nowhere")
	if harness.Root() {
		e.Tree("l", "null%1:3 !0666\nlink ~12:34\nfifo ~5:6")
	}
	m := e.Mount(e.RW())
	before := harness.Dump(t, m.Point, harness.DumpOptions{})
	e.Sh(fmt.Sprintf("cd %s; mv fifo fifo2; mv link link2; mv fifo2 fifo; mv link2 link", m.Point))
	require.Equal(t, before, harness.Dump(t, m.Point, harness.DumpOptions{}))
	fifo := harness.Stat(t, m.P("fifo"))
	require.EqualValues(t, 1000000000, fifo.Mtim.Sec)
	e.Sh(fmt.Sprintf("cd %s; (echo through >fifo &); test $(cat fifo) = through", m.Point))
	require.NoError(t, unix.Mknod(m.P("sock"), unix.S_IFSOCK|0600, 0))
	require.NoError(t, unix.Mkfifo(m.P("new"), 0600))
	if harness.Root() {
		e.Sh(fmt.Sprintf("cd %s; echo x >null; chmod 600 null; mknod dev b 7 200", m.Point))
		require.EqualValues(t, unix.Mkdev(1, 3), harness.Stat(t, e.P("u/null")).Rdev)
		require.EqualValues(t, unix.Mkdev(7, 200), harness.Stat(t, m.P("dev")).Rdev)
	}
}

func TestTmpfileAndLinkat(t *testing.T) {
	e := harness.New(t).Tree("l", "d/x=1")
	m := e.Mount(e.RW())
	fd, err := unix.Open(m.P("d"), unix.O_TMPFILE|unix.O_RDWR, 0640)
	require.NoError(t, err)
	_, err = unix.Write(fd, []byte("tmp"))
	require.NoError(t, err)
	require.NoError(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, m.P("d/named"), unix.AT_SYMLINK_FOLLOW))
	require.NoError(t, unix.Close(fd))
	require.Equal(t, "tmp", read(t, m.P("d/named")))
	require.EqualValues(t, 1, harness.Stat(t, m.P("d/named")).Nlink)
	fd, err = unix.Open(m.P("d"), unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL, 0600)
	require.NoError(t, err)
	require.Error(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, m.P("d/never"), unix.AT_SYMLINK_FOLLOW))
	require.NoError(t, unix.Close(fd))
	require.Equal(t, []string{"d/", "d/named=tmp", "d/x=1"}, harness.Names(t, m.Remount(e.RW()).Point))
}

func TestStatfs(t *testing.T) {
	e := harness.New(t)
	for dialect, max := range map[string]int{"overlay": 255, "aufs": 251, "xattr": 255} {
		require.NoError(t, os.MkdirAll(e.P(dialect, "u"), 0755))
		require.NoError(t, os.MkdirAll(e.P(dialect, "w"), 0755))
		m := e.Mount(fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,whiteout=%s", e.P("l"), e.P(dialect, "u"), e.P(dialect, "w"), dialect))
		var st, up unix.Statfs_t
		require.NoError(t, unix.Statfs(m.Point, &st))
		require.NoError(t, unix.Statfs(e.P("u"), &up))
		require.Equal(t, up.Blocks, st.Blocks)
		require.EqualValues(t, max, st.Namelen, dialect)
		long := strings.Repeat("n", max)
		require.NoError(t, os.Mkdir(m.P(long), 0755))
		wantErrno(t, unix.ENAMETOOLONG, os.Mkdir(m.P(long+"n"), 0755))
		m.Unmount()
	}
}

func TestReadOnly(t *testing.T) {
	e := harness.New(t).Tree("l", "d/f=1\nlink->d")
	for _, opts := range []string{"lowerdir=" + e.P("l"), e.RW("ro")} {
		m := e.Mount(opts)
		for what, err := range map[string]error{
			"create":   os.WriteFile(m.P("new"), nil, 0644),
			"write":    os.WriteFile(m.P("d/f"), nil, 0644),
			"unlink":   unix.Unlink(m.P("d/f")),
			"mkdir":    unix.Mkdir(m.P("n"), 0755),
			"rmdir":    unix.Rmdir(m.P("d")),
			"rename":   unix.Rename(m.P("d"), m.P("e")),
			"chmod":    unix.Chmod(m.P("d/f"), 0600),
			"setxattr": unix.Setxattr(m.P("d/f"), "user.x", nil, 0),
			"truncate": unix.Truncate(m.P("d/f"), 0),
			"link":     unix.Link(m.P("d/f"), m.P("n")),
			"symlink":  unix.Symlink("x", m.P("n")),
			"mknod":    unix.Mkfifo(m.P("n"), 0600),
		} {
			wantErrno(t, unix.EROFS, err, what)
		}
		require.Equal(t, []string{"d/", "d/f=1", "link->d"}, harness.Names(t, m.Point))
		m.Unmount()
	}
	require.Empty(t, harness.Names(t, e.P("u")))
}

func TestLayerfsOnLayerfs(t *testing.T) {
	e := harness.New(t).Tree("l", "a=1\nd/b=2\nd/c=3")
	m := e.Mount(e.RW())
	require.NoError(t, os.Remove(m.P("d/c")))
	for _, d := range []string{"u2", "w2", "m2"} {
		require.NoError(t, os.Mkdir(e.P(d), 0755))
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", m.Point, e.P("u2"), e.P("w2"))
	m2 := e.MountOn(e.P("m2"), opts)
	require.Equal(t, []string{"a=1", "d/", "d/b=2"}, harness.Names(t, m2.Point))
	write(t, m2.P("d/b"), "changed")
	require.NoError(t, os.Remove(m2.P("a")))
	require.NoError(t, os.Rename(m2.P("d"), m2.P("e")))
	require.Equal(t, []string{"e/", "e/b=changed"}, harness.Names(t, m2.Point))
	require.Equal(t, []string{"a=1", "d/", "d/b=2"}, harness.Names(t, m.Point), "the mount below is a lower")
	m2 = m2.Remount(opts)
	require.Equal(t, []string{"e/", "e/b=changed"}, harness.Names(t, m2.Point))
	m2.Unmount()
	// An upper cannot lie in the tree of another mount, which keeps every
	// dialect's records to itself. That must be said, and leave nothing.
	for _, d := range []string{"up", "work"} {
		require.NoError(t, os.Mkdir(m.P(d), 0755))
	}
	r := e.Layerfs("-o", fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", e.P("l"), m.P("up"), m.P("work")), e.P("m2"))
	require.Equal(t, 1, r.Code, "if this works now, make it a test of what it does")
	require.Contains(t, r.Stderr, m.P("up"))
	require.Empty(t, harness.Names(t, m.P("up")))
}

// / as a lower that contains the upper, the work directory and the mountpoint.
func TestWholeRootAsLower(t *testing.T) {
	e := harness.New(t)
	opts := fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", e.P("u"), e.P("w"))
	m := e.Mount(opts)
	for _, hidden := range []string{"u", "w", "m"} {
		require.False(t, exists(m.P(e.P(hidden))), "%s shows itself in itself", hidden)
	}
	require.DirExists(t, m.P(e.P("l")))
	entries, err := os.ReadDir(m.P("proc"))
	require.NoError(t, err)
	require.Empty(t, entries, "a mount point in a branch is an empty directory")
	require.Equal(t, read(t, "/etc/passwd"), read(t, m.P("etc/passwd")))
	if harness.Root() {
		e.Sh(fmt.Sprintf("cd %s; echo x >>etc/passwd; rm -r etc/apt; mv usr/share usr/share2; test -d usr/share2/doc", m.Point))
		require.NotContains(t, read(t, "/etc/passwd"), "\nx\n")
		require.DirExists(t, "/usr/share")
	}
}

// The upper is the plain user's, the lower root's: what the merged directory
// lets him do he can do, like with any copy.
func TestForeignLower(t *testing.T) {
	harness.RequireRoot(t)
	e := harness.New(t).Tree("l", "d/ !0777\nd/f=root's !0644\nd/sub/g=1\nd/empty/\nd/open=free !0666\nclosed/x=1\nd/priv=secret !0600")
	for _, d := range []string{"u", "w", "m"} {
		require.NoError(t, os.Chown(e.P(d), harness.Ordinary, harness.Ordinary))
	}
	before := harness.Dump(t, e.P("l"), harness.DumpOptions{Times: true})
	r := e.Cmd(harness.AsOrdinary, "sh", "-ec", fmt.Sprintf(`
		BIN=%s M=%s; $BIN -o %s $M; cd $M
		trap 'cd /; fusermount3 -u $M' EXIT
		echo more >>d/open; test "$(cat d/open)" = "freemore"
		rm -f d/f; test ! -e d/f; echo mine >d/f; test "$(stat -c %%u d/f)" = %d
		rmdir d/empty; mkdir d/empty; touch d/empty/x
		mv d/sub d/sub2; test "$(cat d/sub2/g)" = 1
		! cat d/priv 2>/dev/null; rm -f d/priv; test ! -e d/priv
		! rm closed/x 2>/dev/null
		! touch new 2>/dev/null || test "$(stat -c %%u .)" = %d`, harness.Bin(), e.P("m"), e.RW(), harness.Ordinary, harness.Ordinary))
	require.Zero(t, r.Code, r.Stderr)
	require.True(t, harness.Eventually(2e9, func() bool { return len(harness.Daemons(e.P("m"))) == 0 }))
	require.Equal(t, before, harness.Dump(t, e.P("l"), harness.DumpOptions{Times: true}))
}

func TestInodeNumbersInReaddir(t *testing.T) {
	e := harness.New(t).Tree("l", "a=1\nb=>a\nd/x=2\nd/e/y=3\ns->a\np|").Tree("l2", "d/low=4\nz=5")
	opts := "lowerdir=" + e.P("l") + ":" + e.P("l2") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w")
	m := e.Mount(opts)
	inodes := func() string {
		// ls -i takes d_ino, stat st_ino.
		fromDir := e.Sh("cd " + m.Point + "; find . -mindepth 1 -printf '%p %i\\n' | sort")
		fromStat := e.Sh("cd " + m.Point + "; find . -mindepth 1 -exec stat -c '%n %i' {} + | sort")
		require.Equal(t, fromStat, fromDir)
		return fromStat
	}
	dIno := func() {
		f, err := os.Open(m.Point)
		require.NoError(t, err)
		defer f.Close()
		buf := make([]byte, 64<<10)
		n, err := unix.Getdents(int(f.Fd()), buf)
		require.NoError(t, err)
		seen := 0
		for b := buf[:n]; len(b) > 0; {
			ino := *(*uint64)(ptr(b))
			reclen := int(b[16]) | int(b[17])<<8
			name := strings.TrimRight(string(b[19:reclen]), "\x00")
			name, _, _ = strings.Cut(name, "\x00")
			if name != ".." {
				require.Equal(t, harness.Stat(t, m.P(name)).Ino, ino, "d_ino of %s", name)
				seen++
			}
			b = b[reclen:]
		}
		require.Equal(t, 7, seen)
	}
	first := inodes()
	dIno()
	e.Sh(fmt.Sprintf("cd %s; echo x >>a; chmod 600 d/x; touch d/e d; chmod 700 d/e; touch -h s; mv z z2; mv z2 z; touch d/low", m.Point))
	require.Equal(t, first, inodes(), "stable across copy-up")
	dIno()
	m = m.Remount(opts)
	require.Equal(t, first, inodes(), "and across a remount")
	lines := strings.Split(strings.TrimSpace(first), "\n")
	seen := map[string]string{}
	for _, l := range lines {
		name, ino, _ := strings.Cut(l, " ")
		if other, dup := seen[ino]; dup {
			require.ElementsMatch(t, []string{"./a", "./b"}, []string{name, other}, "one number for two inodes")
		}
		seen[ino] = name
	}
}

// fs_flags by ioctl, locks, and fsync that reaches the branch.
func TestFlagsAndLocks(t *testing.T) {
	e := harness.New(t).Tree("l", "f=1")
	m := e.Mount(e.RW())
	if _, err := exec.LookPath("lsattr"); err == nil {
		e.Sh("chattr +d " + m.P("f") + " && lsattr " + m.P("f") + " | grep -q -- '-d-'")
	}
	a, err := os.OpenFile(m.P("f"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer a.Close()
	b, err := os.OpenFile(m.P("f"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	wantErrno(t, unix.EWOULDBLOCK, unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	require.NoError(t, a.Sync())
	d, err := os.Open(m.Point)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, d.Sync(), "fsync of a directory")
}

// What was looked up before its last name went still answers. A walk that met
// a symbolic link while another process replaced it got ESTALE, which showed
// as a failing open(2) (OpenSymlinkRace of go-fuse, once in many runs).
func TestRemovedWhileHeld(t *testing.T) {
	for _, dialect := range []string{"overlay", "aufs", "xattr"} {
		t.Run(dialect, func(t *testing.T) {
			e := harness.New(t).Tree("l", "link->target\nfifo|\ndir/\nfile=content")
			m := e.Mount(e.RW("whiteout=" + dialect))
			harness.MkTree(t, m.Point, "ulink->target\nufifo|\nudir/\nufile=content")
			for _, name := range []string{"link", "fifo", "dir", "file", "ulink", "ufifo", "udir", "ufile"} {
				fd, err := unix.Open(m.P(name), unix.O_PATH|unix.O_NOFOLLOW, 0)
				require.NoError(t, err)
				require.NoError(t, os.RemoveAll(m.P(name)))
				var st unix.Stat_t
				require.NoError(t, unix.Fstat(fd, &st), name)
				require.Zero(t, st.Nlink, name)
				buf := make([]byte, 100)
				switch st.Mode & unix.S_IFMT {
				case unix.S_IFLNK:
					n, err := unix.Readlinkat(fd, "", buf)
					require.NoError(t, err, name)
					require.Equal(t, "target", string(buf[:n]))
				case unix.S_IFREG:
					data, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", fd))
					require.NoError(t, err, name)
					require.Equal(t, "content", string(data))
				case unix.S_IFIFO:
					require.NoError(t, unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0711), name)
					require.NoError(t, unix.Fstat(fd, &st))
					require.EqualValues(t, 0711, st.Mode&07777, name)
				}
				require.NoError(t, unix.Close(fd))
			}
		})
	}
}
