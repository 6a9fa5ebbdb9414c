package kernel

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

const (
	top    = "a/f=1\na/sub/g=2\nb/h=3\nx=4\nlink->a/f\nshared/top=t\nempty/"
	bottom = "a/low=5\na/sub/deep/z=6\nc/only=7\ny=8\nx=hidden\nshared/bottom=b\nz/y/x/w=9"
	merged = top + "\na/low=5\na/sub/deep/z=6\nc/only=7\ny=8\nshared/bottom=b\nz/y/x/w=9"
)

// twoLowers is an environment with two lowers, and in plain what they show.
func twoLowers(t *testing.T) *bench {
	b := newBench(t)
	b.Tree("l", top).Tree("l2", bottom).Tree("plain", merged)
	require.NoError(t, os.Chmod(b.P("plain"), 0755))
	return b
}

func (b *bench) stack() string { return "lowerdir=" + b.P("l") + ":" + b.P("l2") }

// same compares the mount with the plain directory.
func (b *bench) same(what string) {
	b.T.Helper()
	require.Equal(b.T, harness.Dump(b.T, b.P("plain"), harness.DumpOptions{}), harness.Dump(b.T, b.P("m"), harness.DumpOptions{}), what)
}

// both does the same to the mount and to the plain directory. What the mount
// cannot do, EXDEV, is not done to the other.
func (b *bench) both(what string, op func(root string) error) {
	b.T.Helper()
	got := errno(op(b.P("m")))
	if got == unix.EXDEV {
		return
	}
	require.Equal(b.T, errno(op(b.P("plain"))), got, what)
}

func errno(err error) (e unix.Errno) {
	errors.As(err, &e)
	return e
}

// names is the small space in which the operations of a history meet.
var names = []string{
	"a", "b", "c", "x", "y", "z", "shared", "empty", "link", "new", "a/f", "a/low", "a/sub", "a/new", "a/sub/g", "a/sub/deep",
	"a/sub/deep/z", "b/h", "b/new", "c/only", "shared/top", "shared/bottom", "z/y", "z/y/x", "new/a", "new/sub", "empty/in",
}

// history does n random operations.
func (b *bench) history(rnd *rand.Rand, n int) {
	b.T.Helper()
	for range n {
		p, q := names[rnd.IntN(len(names))], names[rnd.IntN(len(names))]
		at := func(root string) string { return filepath.Join(root, p) }
		switch rnd.IntN(9) {
		case 0, 1:
			b.both("write "+p, func(r string) error { return put(at(r), q) })
		case 2:
			b.both("truncate "+p, func(r string) error { return unix.Truncate(at(r), 5) })
		case 3:
			b.both("unlink "+p, func(r string) error { return unix.Unlink(at(r)) })
		case 4:
			b.both("mkdir "+p, func(r string) error { return unix.Mkdir(at(r), 0755) })
		case 5: // and what is made there again is opaque
			b.both("rm -r "+p, func(r string) error { return os.RemoveAll(at(r)) })
		case 6:
			b.both("chmod "+p, func(r string) error { return chmod(at(r)) })
		case 7:
			b.both("symlink "+p, func(r string) error { return unix.Symlink(q, at(r)) })
		case 8:
			b.both(fmt.Sprintf("rename %s %s", p, q), func(r string) error { return unix.Rename(at(r), filepath.Join(r, q)) })
		}
	}
}

func put(path, content string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW, 0644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(content))
	return err
}

func chmod(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return err
	}
	return unix.Chmod(path, st.Mode&0777^0011)
}

// One upper goes to and fro between the two, and each shows what the other has
// left. With user. attributes the union is kept from redirecting directories,
// which the kernel would not follow.
func TestToAndFro(t *testing.T) {
	for seed := range uint64(harness.Setting("LAYERFS_TEST_SEEDS", 6)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			b := twoLowers(t)
			rnd := rand.New(rand.NewPCG(seed, 8))
			backends := []string{"fuse", "overlay"}
			redirect := "redirect_dir=on"
			if !trusted() {
				redirect = "redirect_dir=off"
			}
			for round := range 6 {
				backend := backends[(int(seed)+round)%2]
				b.mount(backend, b.stack(), redirect)
				b.same(fmt.Sprintf("round %d, %s, before", round, backend))
				b.history(rnd, 25)
				b.same(fmt.Sprintf("round %d, %s, after", round, backend))
				b.umount()
			}
		})
	}
}

// Redirects and opaque directories, each written by one and read by the other.
func TestRedirectsAndOpaque(t *testing.T) {
	for _, backends := range [][2]string{{"fuse", "overlay"}, {"overlay", "fuse"}} {
		t.Run(backends[0], func(t *testing.T) {
			requireTrusted(t)
			b := twoLowers(t)
			b.mount(backends[0], b.stack())
			b.both("rename in place", func(r string) error { return unix.Rename(r+"/shared", r+"/renamed") })
			b.both("rename away", func(r string) error { return unix.Rename(r+"/a/sub", r+"/moved") })
			b.both("rename below", func(r string) error { return unix.Rename(r+"/moved/deep", r+"/b/deeper") })
			b.both("replace", func(r string) error { return os.RemoveAll(r + "/z") })
			b.both("replace", func(r string) error { return os.MkdirAll(r+"/z/y", 0755) })
			b.both("over the old name", func(r string) error { return os.MkdirAll(r+"/shared/in", 0755) })
			b.same("written by " + backends[0])
			b.umount()
			b.mount(backends[1], b.stack())
			b.same("read by " + backends[1])
			b.both("again", func(r string) error { return unix.Rename(r+"/renamed", r+"/c/twice") })
			b.both("in it", func(r string) error { return os.WriteFile(r+"/c/twice/bottom", []byte("changed"), 0644) })
			b.umount()
			b.mount(backends[0], b.stack())
			b.same("and again by " + backends[0])
			b.umount()
		})
	}
}

// With user. attributes a redirect is the union's alone, and says so.
func TestRedirectInUserIsRefused(t *testing.T) {
	b := twoLowers(t)
	user := "userxattr," + b.stack()
	b.mount("fuse", user)
	require.NoError(t, os.Rename(b.P("m/shared"), b.P("m/renamed")))
	b.umount()
	b.refused(6, "backend=fuse", b.RW("backend=overlay", user))
	b.done("mount", "-o", b.RW(user), b.P("m"))
	require.Equal(t, "fuse", b.status()["backend"])
	require.Contains(t, b.status()["why"], "renamed directories")
	require.Equal(t, "t", b.read("m/renamed/top"))
}

// A mismatch of the namespace, or of the dialect, is refused with the option
// that is needed.
func TestMismatch(t *testing.T) {
	requireTrusted(t)
	for _, first := range []string{"fuse", "overlay"} {
		t.Run(first+", trusted", func(t *testing.T) {
			b := twoLowers(t)
			b.mount(first)
			require.NoError(t, os.RemoveAll(b.P("m/a")))
			b.umount()
			for _, backend := range []string{"fuse", "overlay", "auto"} {
				b.refused(6, "without", b.RW("userxattr,backend="+backend))
				b.asUser(backend)
			}
		})
		t.Run(first+", user", func(t *testing.T) {
			b := twoLowers(t)
			b.mount(first, "userxattr")
			require.NoError(t, os.RemoveAll(b.P("m/a")))
			require.NoError(t, os.Mkdir(b.P("m/a"), 0755))
			b.umount()
			b.refused(6, "option userxattr", b.RW("backend=overlay"))
			b.mount("overlay", "userxattr")
			require.Empty(t, harness.Names(t, b.P("m/a")))
			b.umount()
			b.mount("fuse") // it reads both, and goes on with user.
			require.Empty(t, harness.Names(t, b.P("m/a")))
			require.Equal(t, "overlay user", b.status()["dialect"])
			b.umount()
		})
	}
	t.Run("aufs", func(t *testing.T) {
		b := twoLowers(t)
		b.mount("fuse", "whiteout=aufs")
		require.NoError(t, os.RemoveAll(b.P("m/a")))
		b.umount()
		b.refused(6, "layerfs convert --to overlay", b.RW("backend=overlay"))
		b.done("mount", "-o", b.RW(), b.P("m"))
		require.Equal(t, "fuse", b.status()["backend"], "auto goes where it can be read")
		b.umount()
		b.done("convert", "--to", "overlay", "--workdir", b.P("w"), b.P("u"))
		b.mount("overlay")
		require.NoDirExists(t, b.P("m/a"))
		b.umount()
	})
}

// asUser hands root's upper to the user, in whose namespace the records
// cannot be seen: he must not be shown what was deleted.
func (b *bench) asUser(backend string) {
	b.T.Helper()
	b.Sh("chown -R 65534:65534 u w")
	r := b.Cmd(harness.AsOrdinary, "unshare", "-Urm", harness.Bin(), "mount", "-o", b.RW("backend="+backend), b.P("m"))
	require.Equal(b.T, 6, r.Code, r.Stderr)
	require.Contains(b.T, r.Stderr, "as root")
}

// An upper of somebody else's mount(8) is recognised by what the kernel has
// left on its root.
func TestUnrecordedUpper(t *testing.T) {
	requireTrusted(t)
	for option, ns := range map[string]string{"": "trusted", ",userxattr": "user"} {
		b := twoLowers(t)
		require.NoError(t, unix.Mount("overlay", b.P("m"), "overlay", 0, b.RW()+option))
		require.NoError(t, os.RemoveAll(b.P("m/a")))
		require.NoError(t, os.Mkdir(b.P("m/a"), 0755))
		require.Equal(t, "overlay", b.status()["backend"], "status knows mounts of others")
		b.umount()
		b.mount("fuse")
		require.Empty(t, harness.Names(t, b.P("m/a")))
		require.Equal(t, "overlay "+ns, b.status()["dialect"])
		b.umount()
	}
}

// What only the kernel reads goes back to the kernel.
func TestIndexAndMetacopy(t *testing.T) {
	requireTrusted(t)
	for _, feature := range []string{"index=on", "metacopy=on"} {
		b := newBench(t)
		b.Tree("l", "f=1\nlink=>f")
		b.mount("overlay", feature)
		require.NoError(t, os.Chmod(b.P("m/f"), 0600))
		b.umount()
		b.refused(6, "backend=overlay,"+feature, b.RW("backend=fuse"))
		b.refused(6, feature, b.RW("backend=overlay"))
		b.mount("overlay", feature)
		require.Equal(t, "1", b.read("m/link"))
		b.umount()
	}
	b := newBench(t)
	b.Tree("l", "f=1\nlink=>f")
	b.mount("fuse")
	b.write("m/f", "2")
	b.umount()
	b.refused(6, "hard links", b.RW("backend=overlay"))
	b.done("mount", "-o", b.RW(), b.P("m"))
	require.Equal(t, "2", b.read("m/link"), "auto goes where links are links")
}

// An upper that the kernel has left is in order, the work directory too.
func TestCheckAfterTheKernel(t *testing.T) {
	b := twoLowers(t)
	for _, option := range []string{"fsync=auto", "volatile"} {
		b.mount("overlay", b.stack(), option)
		require.NoError(t, os.RemoveAll(b.P("m/a")))
		require.NoError(t, os.MkdirAll(b.P("m/a/sub"), 0755))
		b.umount()
		require.Contains(t, b.done("check", "--workdir", b.P("w"), "--lower", b.P("l"), "--lower", b.P("l2"), b.P("u")), "clean")
	}
}
