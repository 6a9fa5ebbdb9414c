package union

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// inodes maps every path of a mount to its inode number, and checks that
// readdir and stat agree and that no number stands for two files.
func inodes(t *testing.T, m string) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	owner := map[uint64]string{}
	var walk func(dir string)
	walk = func(dir string) {
		fd, err := sys.OpenRoot(filepath.Join(m, dir))
		require.NoError(t, err)
		defer sys.Close(fd)
		entries, err := sys.ReadDirAt(fd)
		require.NoError(t, err)
		for _, e := range entries {
			p := filepath.Join(dir, e.Name)
			st := stat(t, filepath.Join(m, p))
			require.Equal(t, st.Ino, e.Ino, "%s: readdir and stat disagree", p)
			if other, taken := owner[st.Ino]; taken && st.Nlink < 2 {
				t.Errorf("%s and %s share inode number %d", p, other, st.Ino)
			}
			owner[st.Ino] = p
			out[p] = st.Ino
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				walk(p)
			}
		}
	}
	walk(".")
	return out
}

func TestInodeNumbersAreStable(t *testing.T) {
	b := newBox(t)
	paths := b.layers([]layer{
		{files: []string{"a=1", "d/x=1", "only0="}},
		{files: []string{"b=2", "d/y=2", "d/sub/z=2", "l->a"}},
		{files: []string{"c=3", "d/w=3", "d/sub/v=3"}},
	})
	b.lower = paths[0] + ":" + paths[1] + ":" + paths[2]
	umount := b.mount()
	before := inodes(t, b.mnt)
	for _, f := range []string{"a", "b", "c", "d/y", "d/sub/v"} {
		appendTo(t, b.mnt+"/"+f, "+")
	}
	require.NoError(t, os.Chmod(b.mnt+"/d/sub", 0700))
	require.Equal(t, before, inodes(t, b.mnt), "after copy-up")
	require.NoError(t, os.Rename(b.mnt+"/d", b.mnt+"/d2"))
	require.NoError(t, os.Rename(b.mnt+"/b", b.mnt+"/b2"))
	moved := inodes(t, b.mnt)
	require.Equal(t, before["d/sub/z"], moved["d2/sub/z"])
	require.Equal(t, before["d"], moved["d2"])
	require.Equal(t, before["b"], moved["b2"])
	umount()
	b.mount()
	require.Equal(t, moved, inodes(t, b.mnt), "after a remount")
}

func TestHardLinksSurviveCopyUp(t *testing.T) {
	b := newBox(t)
	put(t, b.lower, "a=one", "d/", "other=x")
	require.NoError(t, os.Link(b.lower+"/a", b.lower+"/b"))
	require.NoError(t, os.Link(b.lower+"/a", b.lower+"/d/c"))
	umount := b.mount()
	old, err := os.Open(b.mnt + "/d/c")
	require.NoError(t, err)
	defer old.Close()
	check := func(links int, content string, names ...string) {
		t.Helper()
		first := stat(t, b.mnt+"/"+names[0])
		for _, n := range names {
			st := stat(t, b.mnt+"/"+n)
			require.EqualValues(t, links, st.Nlink, n)
			require.Equal(t, first.Ino, st.Ino, n)
			require.Equal(t, content, read(t, b.mnt+"/"+n), n)
		}
	}
	check(3, "one", "a", "b", "d/c")
	appendTo(t, b.mnt+"/b", "+two")
	check(3, "one+two", "a", "b", "d/c")
	buf := make([]byte, 20)
	n, _ := old.ReadAt(buf, 0)
	require.Equal(t, "one+two", string(buf[:n]), "a handle from before the copy-up")
	old.Close()
	umount()
	umount = b.mount()
	check(3, "one+two", "d/c", "a", "b")
	appendTo(t, b.mnt+"/d/c", "+three")
	check(3, "one+two+three", "b", "a", "d/c")
	require.NoError(t, os.Remove(b.mnt+"/a"))
	check(2, "one+two+three", "b", "d/c")
	require.NoError(t, os.Rename(b.mnt+"/d/c", b.mnt+"/c2"))
	require.NoError(t, os.Link(b.mnt+"/c2", b.mnt+"/new"))
	check(3, "one+two+three", "b", "c2", "new")
	umount()
	b.mount()
	check(3, "one+two+three", "b", "c2", "new")
	for _, n := range []string{"b", "c2", "new"} {
		require.NoError(t, os.Remove(b.mnt+"/"+n))
	}
	left, err := os.ReadDir(b.work + "/layerfs/links")
	if err == nil { // the ordinary user's work directory is his own to read
		require.Empty(t, left, "the link index keeps a file that has no name")
	}
}

// Podman compares modification times to the nanosecond to find out what an
// image layer changes: neither a copied-up file nor its directories may move.
func TestCopyUpKeepsAttributes(t *testing.T) {
	b := newBox(t)
	put(t, b.lower, "d/sub/f=data", "d/sub/l->f")
	past := time.Unix(1_000_000_000, 123456789)
	require.NoError(t, os.Chmod(b.lower+"/d/sub/f", 0640))
	require.NoError(t, unix.Lsetxattr(b.lower+"/d/sub/f", "user.demo", []byte("v\x00w"), 0))
	require.NoError(t, unix.Lsetxattr(b.lower+"/d/sub", "user.dir", []byte("1"), 0))
	if os.Geteuid() == 0 {
		require.NoError(t, os.Lchown(b.lower+"/d/sub/f", 12, 34))
		require.NoError(t, os.Lchown(b.lower+"/d/sub/l", 12, 34))
		require.NoError(t, unix.Lsetxattr(b.lower+"/d/sub/f", "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
		require.NoError(t, unix.Chmod(b.lower+"/d/sub/f", 06755))
	}
	for _, n := range []string{"d/sub/f", "d/sub", "d"} {
		require.NoError(t, os.Chtimes(b.lower+"/"+n, past, past))
	}
	b.mount()
	want := map[string]unixStat{}
	for _, n := range []string{"d", "d/sub", "d/sub/f", "d/sub/l"} {
		want[n] = attributes(t, b.mnt+"/"+n)
	}
	// Times of the link itself, set to what they are: a copy-up that changes nothing.
	st := stat(t, b.mnt+"/d/sub/l")
	ts := []unix.Timespec{{Sec: st.Atim.Sec, Nsec: st.Atim.Nsec}, {Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, b.mnt+"/d/sub/l", ts, unix.AT_SYMLINK_NOFOLLOW))
	require.NoError(t, unix.Lsetxattr(b.mnt+"/d/sub/f", "user.more", []byte("1"), 0))
	require.NoError(t, unix.Lremovexattr(b.mnt+"/d/sub/f", "user.more"))
	require.FileExists(t, b.upper+"/d/sub/f")
	for n, w := range want {
		require.Equal(t, w, attributes(t, b.mnt+"/"+n), n)
		require.Equal(t, w.mtime, attributes(t, b.upper+"/"+n).mtime, "%s in the upper", n)
	}
	var v [40]byte
	n, err := unix.Lgetxattr(b.mnt+"/d/sub/f", "user.demo", v[:])
	require.NoError(t, err)
	require.Equal(t, "v\x00w", string(v[:n]))
	if os.Geteuid() == 0 {
		n, err = unix.Lgetxattr(b.upper+"/d/sub/f", "security.capability", v[:])
		require.NoError(t, err)
		require.Equal(t, 20, n)
	}
}

type unixStat struct {
	mode, uid, gid uint32
	size           int64
	mtime          unix.Timespec
}

func attributes(t *testing.T, p string) unixStat {
	t.Helper()
	st := stat(t, p)
	size := st.Size
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		size = 0
	}
	return unixStat{st.Mode, st.Uid, st.Gid, size, unix.Timespec{Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
}

func TestCopyUpKeepsHolesAndACLs(t *testing.T) {
	b := newBox(t)
	f, err := os.Create(b.lower + "/sparse")
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("end"), 64<<20)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	put(t, b.lower, "acl=x", "dir/")
	if out, err := runFor(time.Second*5, "setfacl", "-m", "u:12:rw,g:34:r", b.lower+"/acl"); err != nil {
		skip(t, "setfacl: %v %s", err, out)
	}
	_, err = runFor(time.Second*5, "setfacl", "-d", "-m", "u:12:rwx", b.lower+"/dir")
	require.NoError(t, err)
	b.mount()
	appendTo(t, b.mnt+"/sparse", "!")
	st := stat(t, b.upper+"/sparse")
	require.EqualValues(t, 64<<20+4, st.Size)
	require.Less(t, st.Blocks*512, int64(1<<20), "the holes were filled")
	appendTo(t, b.mnt+"/acl", "!")
	out, err := runFor(time.Second*5, "getfacl", "-cpn", b.mnt+"/acl", b.upper+"/acl")
	require.NoError(t, err)
	require.Contains(t, out, "user:12:rw-")
	require.Contains(t, out, "group:34:r--")
	put(t, b.mnt, "dir/new=1", "dir/sub/")
	for _, n := range []string{"dir/new", "dir/sub"} {
		out, err = runFor(time.Second*5, "getfacl", "-cpn", b.mnt+"/"+n)
		require.NoError(t, err)
		require.Contains(t, out, "user:12:rw", "%s inherits the default ACL", n)
	}
}
