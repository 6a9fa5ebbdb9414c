package kernelbackend

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/whiteout"
)

// bench is a directory with l, l2, u, w and m in it.
type bench struct {
	t   *testing.T
	dir string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root: the end-to-end tests do it in a user namespace")
	}
	dir, err := os.MkdirTemp("/var/tmp", "layerfs-kernelbackend-") // /tmp may be no file system for an upper
	require.NoError(t, err)
	b := &bench{t, dir}
	for _, d := range []string{"l", "l2", "u", "w", "m"} {
		require.NoError(t, os.Mkdir(b.p(d), 0755))
	}
	t.Cleanup(func() {
		_ = unix.Unmount(b.p("m"), unix.MNT_DETACH)
		require.NoError(t, os.RemoveAll(dir))
	})
	return b
}

func (b *bench) p(elem ...string) string { return filepath.Join(append([]string{b.dir}, elem...)...) }

func (b *bench) write(path, content string) {
	b.t.Helper()
	require.NoError(b.t, os.WriteFile(b.p(path), []byte(content), 0644))
}

func (b *bench) read(path string) string {
	b.t.Helper()
	data, err := os.ReadFile(b.p(path))
	require.NoError(b.t, err)
	return string(data)
}

func (b *bench) overlay() Overlay {
	return Overlay{Lowers: []string{b.p("l")}, Upper: b.p("u"), Work: b.p("w"), Mountpoint: b.p("m"), RedirectDir: true}
}

func (b *bench) mount(o Overlay) {
	b.t.Helper()
	require.NoError(b.t, MountOverlay(o))
}

func (b *bench) refused(o Overlay, class errs.Class, says string) {
	b.t.Helper()
	err := MountOverlay(o)
	require.ErrorContains(b.t, err, says)
	require.Equal(b.t, class, errs.Of(err), "%v", err)
	_, ok, err := OverlayAt(b.p("m"))
	require.NoError(b.t, err)
	require.False(b.t, ok, "nothing is mounted")
}

func (b *bench) unmount() {
	b.t.Helper()
	require.NoError(b.t, UnmountOverlay(b.p("m"), false))
}

func (b *bench) record() string {
	b.t.Helper()
	fd, err := unix.Open(b.p("u"), unix.O_PATH, 0)
	require.NoError(b.t, err)
	defer unix.Close(fd)
	f, ok, err := whiteout.Recorded(fd)
	require.NoError(b.t, err)
	require.True(b.t, ok)
	return f.String()
}

func TestMountOverlay(t *testing.T) {
	b := newBench(t)
	b.write("l/a", "1")
	require.NoError(t, os.Mkdir(b.p("l/d"), 0755))
	b.mount(b.overlay())
	b.write("m/a", "2")
	require.NoError(t, os.Rename(b.p("m/d"), b.p("m/e")), "redirect_dir=on")
	require.Equal(t, "1", b.read("l/a"))
	require.Equal(t, "2", b.read("u/a"))
	live, ok, err := OverlayAt(b.p("m"))
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, []string{b.p("l")}, live.Lowers)
	require.Equal(t, b.p("u"), live.Upper)
	require.Equal(t, b.p("w"), live.Work)
	require.Equal(t, "layerfs", live.Source)
	require.NoError(t, os.Symlink("m", b.p("link")))
	live, ok, err = OverlayAt(b.p("link"))
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, b.p("m"), live.Mountpoint)
	_, ok, err = OverlayAt(b.p("gone"))
	require.NoError(t, err)
	require.False(t, ok)
	b.refused2(b.overlay(), errs.Busy, b.p("m"))
	b.unmount()
	require.Equal(t, "overlay trusted", b.record())
	err = UnmountOverlay(b.p("m"), false)
	require.Equal(t, errs.NotFound, errs.Of(err), "%v", err)
}

// refused2 is refused on another mountpoint, while m is in use.
func (b *bench) refused2(o Overlay, class errs.Class, says string) {
	b.t.Helper()
	o.Mountpoint = b.p("l2")
	err := MountOverlay(o)
	require.ErrorContains(b.t, err, says)
	require.Equal(b.t, class, errs.Of(err), "%v", err)
}

func TestReadOnly(t *testing.T) {
	b := newBench(t)
	b.write("l/a", "1")
	b.write("u/b", "2")
	o := b.overlay()
	o.ReadOnly = true
	b.mount(o)
	require.Equal(t, "12", b.read("m/a")+b.read("m/b"))
	require.ErrorIs(t, os.Remove(b.p("m/a")), unix.EROFS)
	b.unmount()
	one := Overlay{Lowers: []string{b.p("l")}, Mountpoint: b.p("m")}
	b.mount(one)
	require.Equal(t, "1", b.read("m/a"), "one lower alone")
	live, ok, err := OverlayAt(b.p("m"))
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, []string{b.p("l")}, live.Lowers)
	b.unmount()
	require.NoDirExists(t, b.p("w/work"), "the work directory is left alone")
}

// manyLowers makes n lowers with a file each, in directories with long names.
func (b *bench) manyLowers(n int) (lowers []string) {
	long := b.p(strings.Repeat("x", 200))
	for i := range n {
		dir := filepath.Join(long, fmt.Sprintf("layer %d, with: a name", i))
		require.NoError(b.t, os.MkdirAll(dir, 0755))
		require.NoError(b.t, os.WriteFile(filepath.Join(dir, fmt.Sprint("f", i)), nil, 0644))
		lowers = append(lowers, dir)
	}
	return lowers
}

func TestManyLowers(t *testing.T) {
	b := newBench(t)
	lowers := b.manyLowers(maxLowers + 1)
	for _, n := range []int{101, maxLowers} {
		o := b.overlay()
		o.Lowers = lowers[:n]
		for way, mount := range map[string]func(*mounting) error{
			"parameters":      func(m *mounting) error { _, err := m.mountByParameters(); return err },
			"page of options": (*mounting).mountByOptions,
		} {
			m, err := open(o)
			require.NoError(t, err)
			require.NoError(t, mount(m), way)
			m.close()
			names, err := os.ReadDir(b.p("m"))
			require.NoError(t, err)
			require.Len(t, names, n, way)
			live, ok, err := OverlayAt(b.p("m"))
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, o.Lowers, live.Lowers, way)
			b.unmount()
		}
	}
	o := b.overlay()
	o.Lowers = lowers
	b.refused(o, errs.Unsupported, "500")
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "layerfs-lowers-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestUserXattr(t *testing.T) {
	b := newBench(t)
	require.NoError(t, os.Mkdir(b.p("l/d"), 0755))
	o := b.overlay()
	o.UserXattr = true
	b.refused(o, errs.Unsupported, "redirect_dir")
	o.RedirectDir = false
	b.mount(o)
	require.ErrorIs(t, os.Rename(b.p("m/d"), b.p("m/e")), unix.EXDEV)
	require.NoError(t, os.Remove(b.p("m/d")))
	require.NoError(t, os.Mkdir(b.p("m/d"), 0755))
	b.unmount()
	require.Equal(t, "overlay user", b.record())
	var v [1]byte
	_, err := unix.Lgetxattr(b.p("u/d"), "user.overlay.opaque", v[:])
	require.NoError(t, err)
	require.Equal(t, "y", string(v[:]))
	b.refused(b.overlay(), errs.Corrupt, "option userxattr")
	o.Lowers, o.Upper = []string{b.p("u")}, b.p("l2")
	o.UserXattr = false
	b.refused(o, errs.Corrupt, "option userxattr")
}

// Uppers that the kernel would show otherwise than who wrote them.
func TestMismatches(t *testing.T) {
	user := func(o *Overlay) { o.UserXattr, o.RedirectDir = true, false }
	same := func(*Overlay) {}
	for name, c := range map[string]struct {
		attr, value string
		file        string // in the work directory
		alter       func(*Overlay)
		class       errs.Class
		says        string
	}{
		"aufs":                 {"trusted.layerfs.format", "aufs trusted", "", same, errs.Corrupt, "layerfs convert --to overlay"},
		"xattr":                {"trusted.layerfs.format", "xattr trusted", "", same, errs.Corrupt, "backend=fuse"},
		"converting":           {"trusted.layerfs.format", "converting-to-aufs trusted", "", same, errs.Corrupt, "layerfs convert --to aufs"},
		"trusted":              {"trusted.layerfs.format", "overlay trusted", "", user, errs.Corrupt, "without the option userxattr"},
		"trusted, by the hint": {records.TrustedHint, "overlay trusted", "", user, errs.Corrupt, "without the option userxattr"},
		"the kernel's trusted": {"trusted.overlay.uuid", "0123456789abcdef", "", user, errs.Corrupt, "without the option userxattr"},
		"the kernel's user":    {"user.overlay.impure", "y", "", same, errs.Corrupt, "with the option userxattr"},
		"hard links":           {"trusted.layerfs.links", "y", "", same, errs.Corrupt, "backend=fuse"},
		"index":                {"trusted.layerfs.kernel", "index", "", same, errs.Corrupt, "index=on"},
		"metacopy":             {"trusted.layerfs.kernel", "metacopy", "", same, errs.Corrupt, "metacopy=on"},
		"half a rename":        {"", "", "layerfs/rename1", same, errs.Corrupt, "backend=fuse"},
		"volatile":             {"", "", "layerfs/volatile", same, errs.Corrupt, "layerfs/volatile"},
		"the kernel's mark":    {"", "", records.KernelVolatile, same, errs.Corrupt, records.KernelVolatile},
		"inside the upper":     {"", "", "", func(o *Overlay) { o.Upper = filepath.Dir(o.Mountpoint) }, errs.Usage, "lies inside the upper"},
		"missing lower":        {"", "", "", func(o *Overlay) { o.Lowers = append(o.Lowers, "/not/there") }, errs.NotFound, "/not/there"},
		"overlap":              {"", "", "", func(o *Overlay) { o.Lowers = append(o.Lowers, filepath.Dir(o.Mountpoint)) }, errs.Usage, "overlap"},
		"work elsewhere":       {"", "", "", func(o *Overlay) { o.Work = "/dev/shm" }, errs.Usage, "different file systems"},
		"no work":              {"", "", "", func(o *Overlay) { o.Work = "" }, errs.Usage, "work directory"},
		"procfs":               {"", "", "", func(o *Overlay) { o.Upper, o.Work = "/proc/self", "/proc/self/task" }, errs.Unsupported, "upper"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			if c.attr != "" {
				require.NoError(t, unix.Lsetxattr(b.p("u"), c.attr, []byte(c.value), 0))
			}
			if c.file != "" {
				require.NoError(t, os.MkdirAll(filepath.Dir(b.p("w", c.file)), 0755))
				b.write("w/"+c.file, "")
			}
			o := b.overlay()
			c.alter(&o)
			before := attrs(t, b.p("u"))
			b.refused(o, c.class, c.says)
			require.Equal(t, before, attrs(t, b.p("u")), "a refusal leaves no record")
		})
	}
}

func attrs(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	require.NoError(t, err)
	return strings.ReplaceAll(string(buf[:n]), "trusted.overlay.uuid\x00", "") // the kernel may have come so far
}

// A file that was copied up by blocks would show its stub.
func TestStubs(t *testing.T) {
	b := newBench(t)
	require.NoError(t, os.Mkdir(b.p("l2/.wh..wh.layerfs"), 0700))
	require.NoError(t, unix.Lsetxattr(b.p("l2"), "trusted.layerfs.format", []byte("overlay trusted"), 0))
	o := b.overlay()
	o.Lowers = append(o.Lowers, b.p("l2"))
	b.refused(o, errs.Corrupt, "layerfs settle")
}

func TestVolatile(t *testing.T) {
	b := newBench(t)
	o := b.overlay()
	o.Volatile = true
	b.mount(o)
	require.DirExists(t, b.p("w", records.KernelVolatile))
	b.unmount()
	require.NoDirExists(t, b.p("w", records.KernelVolatile), "a clean end")
	b.mount(o)
	b.write("m/a", "1")
	require.NoError(t, unix.Unmount(b.p("m"), 0)) // by somebody who leaves the marks
	b.mount(b.overlay())
	require.Equal(t, "1", b.read("m/a"), "nothing is lost before the machine goes down")
	b.unmount()
	b.mount(o)
	require.NoError(t, unix.Unmount(b.p("m"), 0))
	wrong := o
	wrong.Lowers = append([]string{b.dir}, o.Lowers...)
	b.refused(wrong, errs.Usage, "overlap")
	require.NoFileExists(t, b.p("w/layerfs/volatile"), "nor does a mount that fails leave a mark")
	b.mount(o)
	require.NoError(t, unix.Unmount(b.p("m"), 0))
	b.write("w/layerfs/volatile", "another boot")
	b.refused(o, errs.Corrupt, "may be incomplete")
}

// What is recorded for the features that only the kernel reads.
func TestFeatures(t *testing.T) {
	b := newBench(t)
	b.write("l/a", "1")
	require.NoError(t, os.Link(b.p("l/a"), b.p("l/b")))
	o := b.overlay()
	o.Index, o.Metacopy = true, true
	b.mount(o)
	b.write("m/a", "2")
	require.Equal(t, "2", b.read("m/b"), "a link stays one")
	b.unmount()
	b.refused(b.overlay(), errs.Corrupt, "=on")
	b.mount(o)
	require.Equal(t, "2", b.read("m/b"))
	b.unmount()
}

func TestRedirectsInUser(t *testing.T) {
	b := newBench(t)
	require.NoError(t, os.MkdirAll(b.p("u/a/b/c"), 0755))
	require.NoError(t, os.Mkdir(b.p("w/layerfs"), 0700))
	o := b.overlay()
	o.UserXattr, o.RedirectDir = true, false
	b.mount(o)
	b.unmount()
	require.NoError(t, unix.Lsetxattr(b.p("u/a/b"), "user.overlay.redirect", []byte("/x"), 0))
	b.refused(o, errs.Corrupt, "renamed directories")
}

func TestForeignMarks(t *testing.T) {
	b := newBench(t)
	o := b.overlay()
	o.Lowers = []string{b.p("l"), b.p("l2")}
	found := func(want string) {
		t.Helper()
		got, err := o.ForeignMarks()
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.NoError(t, os.MkdirAll(b.p("l2/x"), 0755))
	b.write("l2/x/.wh.y", "")
	found("")
	require.NoError(t, os.MkdirAll(b.p("l/a/b"), 0755))
	b.write("l/a/b/.wh..wh..opq", "")
	found(b.p("l/a/b/.wh..wh..opq"))
	require.NoError(t, unix.Lsetxattr(b.p("l"), "trusted.layerfs.format", []byte("overlay trusted"), 0))
	found("")
	b.write("u/.wh.z", "")
	found(b.p("u/.wh.z"))
}
