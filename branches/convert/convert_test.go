package convert

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches/offline"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

func openUpper(t *testing.T, dir string) *offline.Upper {
	t.Helper()
	u, err := offline.OpenAlone(dir, "")
	require.NoError(t, err)
	t.Cleanup(u.Close)
	return u
}

func run(t *testing.T, dir string, d whiteout.Dialect, ns whiteout.Namespace) *Result {
	t.Helper()
	return runOn(t, openUpper(t, dir), d, ns)
}

func runOn(t *testing.T, u *offline.Upper, d whiteout.Dialect, ns whiteout.Namespace) *Result {
	t.Helper()
	r, err := Run(u, d, ns)
	require.NoError(t, err)
	return r
}

// Random branches with marks of every dialect, contradictory ones included, go
// through all dialects. What they show, on top, in the middle and through
// redirects from above, stays the same, the times of directories too.
func TestRandom(t *testing.T) {
	seeds := uint64(24)
	if testing.Short() {
		seeds = 6
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			f, dir := newForest(t, seed), testDir(t)
			up, low, top := mkdir(t, dir+"/up"), mkdir(t, dir+"/low"), mkdir(t, dir+"/top")
			f.lower(low, 3)
			f.upper(up, 3)
			if f.IntN(3) == 0 {
				f.mark(up)
			}
			for i, to := range []string{"/a", "/b/c", "/a/b/c", "/e/f", "g", "/h/a"} {
				set(t, mkdir(t, fmt.Sprintf("%s/%c", top, 'a'+i)), f.ns()+redirectAttr, to)
			}
			old(t, up)
			u := openUpper(t, up)
			root, err := whiteout.ReadMarks(u.Root, ".")
			require.NoError(t, err)
			show := func() string {
				lines := merged(t, up, low)
				if !root.Opaque { // an absolute redirect looks past a root that is
					lines = append(lines, merged(t, top, up, low)...)
				}
				return strings.Join(lines, "\n")
			}
			want := show()
			for range 4 {
				d, ns := whiteout.Dialect(f.IntN(3)), f.spaces[f.IntN(len(f.spaces))]
				r := runOn(t, u, d, ns)
				require.Equal(t, want, show(), "converted to %s", r.To)
				again := runOn(t, u, d, "")
				require.Zero(t, again.Changes, "nothing is left to do")
				require.Equal(t, r.To, again.From)
				onlyIn(t, up, whiteout.Format{Dialect: d, NS: ns})
			}
		})
	}
}

// onlyIn requires that no mark of another format is left, judged by what lies there.
func onlyIn(t *testing.T, root string, f whiteout.Format) {
	t.Helper()
	other := map[whiteout.Namespace]string{whiteout.Trusted: "user.overlay.", whiteout.User: "trusted.overlay."}[f.NS]
	require.NoError(t, filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		require.NoError(t, err)
		name := d.Name()
		if strings.HasPrefix(name, ".wh.") {
			require.Equal(t, whiteout.AUFS, f.Dialect, p)
			if name != whiteout.OpaqueFile {
				require.NoFileExists(t, filepath.Join(filepath.Dir(p), name[4:]))
			}
		}
		if d.Type()&os.ModeCharDevice != 0 {
			require.Equal(t, whiteout.Overlay, f.Dialect, p)
		}
		buf := make([]byte, 4096)
		n, err := unix.Llistxattr(p, buf)
		require.NoError(t, err)
		for _, a := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
			if d.IsDir() {
				require.False(t, strings.HasPrefix(a, other) || strings.Contains(a, "fuseoverlayfs"), "%s %s", p, a)
				require.False(t, f.Dialect == whiteout.AUFS && strings.Contains(a, "overlay."), "%s %s", p, a)
			}
		}
		return nil
	}))
}

// After each single step the branch shows what it showed: the steps are taken
// one by one.
func TestEachStep(t *testing.T) {
	for seed := range uint64(12) {
		f, dir := newForest(t, 1000+seed), testDir(t)
		up, low := mkdir(t, dir+"/up"), mkdir(t, dir+"/low")
		f.lower(low, 2)
		f.upper(up, 2)
		fd, err := sys.OpenRoot(up)
		require.NoError(t, err)
		defer sys.Close(fd)
		names := func() (out []string) { // times are kept for all steps of a directory, not for each
			for _, l := range merged(t, up, low) {
				out = append(out, strings.Join(strings.Fields(l)[:4], " "))
			}
			return out
		}
		want := names()
		for _, d := range []whiteout.Dialect{whiteout.Xattr, whiteout.AUFS, whiteout.Overlay, whiteout.AUFS, whiteout.Xattr, whiteout.Overlay} {
			to := whiteout.Format{Dialect: d, NS: f.spaces[f.IntN(len(f.spaces))]}
			c := &conversion{Result: &Result{}, path: up, to: to}
			require.NoError(t, c.walk(fd, ".", func(v *View, path string) error {
				for _, s := range v.Steps(to) {
					require.NoError(t, s.Do())
					require.Equal(t, want, names(), "seed %d to %s, in %s: %s %s: %s", seed, to, path, s.Name, s.Wrong, s.Repair)
				}
				return nil
			}))
		}
	}
}

// The record that is there meanwhile keeps writable mounts away.
func TestUnderWay(t *testing.T) {
	up := mkdir(t, testDir(t)+"/up")
	fd, err := sys.OpenRoot(up)
	require.NoError(t, err)
	defer sys.Close(fd)
	from := whiteout.Format{Dialect: whiteout.AUFS, NS: whiteout.User}
	to := whiteout.Format{Dialect: whiteout.Xattr, NS: whiteout.User}
	require.NoError(t, from.Record(fd))
	require.NoError(t, begin(fd, to))
	_, _, err = whiteout.Recorded(fd)
	require.ErrorContains(t, err, "converting-to-xattr")
	r, err := ReadRecord(fd)
	require.NoError(t, err)
	require.Equal(t, Recorded{to, true, true}, r)
	res := run(t, up, whiteout.AUFS, "") // one may turn back, too
	require.True(t, res.Resumed)
	got, ok, err := whiteout.Recorded(fd)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, from, got)
}

// Whatever records there are, one is left.
func TestOneRecordIsLeft(t *testing.T) {
	up := mkdir(t, testDir(t)+"/up")
	write(t, up+"/"+whiteout.FormatFile, "aufs user")
	set(t, up, "user.layerfs.format", "overlay user")
	r := run(t, up, whiteout.Xattr, "")
	require.Equal(t, "overlay user", r.From)
	fd, err := sys.OpenRoot(up)
	require.NoError(t, err)
	defer sys.Close(fd)
	list, err := Records(fd)
	require.NoError(t, err)
	require.Equal(t, []Record{{whiteout.User, "xattr user"}}, list)
}

// layerfs's own records follow the namespace.
func TestRecordsMove(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	up := mkdir(t, testDir(t)+"/up")
	write(t, up+"/d/f", "1")
	set(t, up, "user.layerfs.format", "aufs user")
	set(t, up, "user.layerfs.links", "y")
	set(t, up+"/d", "user.layerfs.origin", "12345678")
	set(t, up+"/d/f", "user.layerfs.link", "h00 1")
	run(t, up, whiteout.Overlay, whiteout.Trusted)
	for path, attr := range map[string]string{"": "layerfs.links", "/d": "layerfs.origin", "/d/f": "layerfs.link"} {
		_, err := unix.Lgetxattr(up+path, "trusted."+attr, nil)
		require.NoError(t, err, path)
		_, err = unix.Lgetxattr(up+path, "user."+attr, nil)
		require.Equal(t, unix.ENODATA, err, path)
	}
}

func TestRefused(t *testing.T) {
	long := strings.Repeat("n", 252)
	for _, c := range []struct {
		name  string
		make  func(up string)
		class errs.Class
		says  string
	}{
		{"long name", func(up string) { require.NoError(t, unix.Mknod(up+"/"+long, unix.S_IFCHR, 0)) }, errs.Unsupported, long},
		{"no whiteout in the way", func(up string) {
			require.NoError(t, unix.Mknod(up+"/a", unix.S_IFCHR, 0))
			mkdir(t, up+"/.wh.a/b")
		}, errs.Corrupt, ".wh.a"},
		{"whiteout with content", func(up string) { write(t, up+"/.wh.a", "mine") }, errs.Corrupt, ".wh.a"},
		{"bad record", func(up string) { set(t, up, "user.layerfs.format", "cvs user") }, errs.Corrupt, "cvs"},
		{"rename", func(up string) { write(t, up+"/"+whiteout.PrivateDir+"/layerfs/rename#1", "") }, errs.Corrupt, "rename"},
	} {
		up := mkdir(t, testDir(t)+"/up")
		require.NoError(t, unix.Mknod(mkdir(t, up+"/deep")+"/other", unix.S_IFCHR, 0))
		c.make(up)
		_, err := Run(openUpper(t, up), whiteout.AUFS, "")
		require.ErrorContains(t, err, c.says, c.name)
		require.Equal(t, c.class, errs.Of(err), c.name)
		require.NoFileExists(t, up+"/deep/.wh.other", "%s: nothing has been changed", c.name)
	}
}

// A name that AUFS could not record is no obstacle where it hides nothing.
func TestLongNameInOpaqueDirectory(t *testing.T) {
	up := mkdir(t, testDir(t)+"/up")
	set(t, mkdir(t, up+"/d"), "user.overlay.opaque", "y")
	long := up + "/d/" + strings.Repeat("n", 255)
	require.NoError(t, unix.Mknod(long, unix.S_IFCHR, 0))
	run(t, up, whiteout.AUFS, "")
	require.NoFileExists(t, long)
	require.FileExists(t, up+"/d/"+whiteout.OpaqueFile)
}
