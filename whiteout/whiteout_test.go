package whiteout

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// openDir makes a directory for one test and returns its descriptor.
func openDir(t *testing.T) (string, int) {
	t.Helper()
	dir := t.TempDir()
	fd, err := sys.OpenRoot(dir)
	require.NoError(t, err)
	t.Cleanup(func() { sys.Close(fd) })
	return dir, fd
}

// namespace returns one that this user may write.
func namespace() Namespace {
	if os.Geteuid() == 0 {
		return Trusted
	}
	return User
}

func formats() []Format {
	return []Format{{Overlay, namespace()}, {AUFS, namespace()}, {Xattr, namespace()}}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for _, f := range formats() {
		t.Run(f.String(), func(t *testing.T) {
			_, fd := openDir(t)
			require.NoError(t, sys.Mkdir(fd, "d", 0755))
			d, err := sys.OpenDir(fd, "d")
			require.NoError(t, err)
			defer sys.Close(d)
			require.NoError(t, f.PrepareDir(fd, "d"))
			require.NoError(t, f.Make(d, f.Name("gone")))
			m := marks(t, fd, "d")
			require.False(t, m.Opaque)
			if f.InPlace() {
				st, err := sys.StatAt(d, "gone", 0)
				require.NoError(t, err)
				is, err := IsFile(d, "gone", &st, m.XattrWhiteouts)
				require.NoError(t, err)
				require.True(t, is)
			} else {
				require.True(t, hasAUFS(t, d, "gone"))
			}
			require.NoError(t, sys.Mkdir(fd, "o", 0755))
			require.NoError(t, f.SetOpaque(fd, "o"))
			require.True(t, marks(t, fd, "o").Opaque)
			require.NoError(t, sys.Mkdir(fd, "r", 0755))
			require.NoError(t, f.SetRedirect(fd, "r", "/a/b"))
			require.Equal(t, "/a/b", marks(t, fd, "r").Redirect)
			require.False(t, marks(t, fd, "r").Opaque)
		})
	}
}

func TestRecordIsFound(t *testing.T) {
	for _, f := range formats() {
		_, fd := openDir(t)
		_, ok, err := Recorded(fd)
		require.NoError(t, err)
		require.False(t, ok)
		require.NoError(t, f.Record(fd))
		got, ok, err := Recorded(fd)
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, f, got)
	}
}

// A directory is never a whiteout: a tar unpacked naively must not delete.
func TestOnlyFilesAreAUFSWhiteouts(t *testing.T) {
	dir, fd := openDir(t)
	require.NoError(t, os.Mkdir(filepath.Join(dir, ".wh.a"), 0755))
	require.NoError(t, os.Symlink("x", filepath.Join(dir, ".wh.b")))
	require.False(t, hasAUFS(t, fd, "a"))
	require.False(t, hasAUFS(t, fd, "b"))
}

func TestBrokenMarksCountAsAbsent(t *testing.T) {
	dir, fd := openDir(t)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "d"), 0755))
	for _, v := range []string{"", "n", "\x00", "yes please"} {
		require.NoError(t, unix.Lsetxattr(filepath.Join(dir, "d"), "user.overlay.opaque", []byte(v), 0))
		require.Equal(t, v == "yes please", marks(t, fd, "d").Opaque, "%q", v)
	}
	for _, r := range []string{"..", ".", "/", "a/b", "/a/../b", "/a//b", "/a/", "\x00"} {
		require.NoError(t, unix.Lsetxattr(filepath.Join(dir, "d"), "user.overlay.redirect", []byte(r), 0))
		require.Empty(t, marks(t, fd, "d").Redirect, "%q", r)
	}
}

func TestReserved(t *testing.T) {
	for name, want := range map[string]bool{".wh.a": true, ".wh.": true, ".wh..wh..opq": true, ".wha": false, "a.wh.": false, ".wh": false} {
		require.Equal(t, want, Reserved(name), name)
	}
	for attr, want := range map[string]bool{
		"user.overlay.opaque": true, "trusted.overlay.x": true, "user.layerfs.format": true,
		"user.containers.override_stat": true, "user.overlay": false, "user.demo": false, "security.capability": false,
	} {
		require.Equal(t, want, ReservedXattr(attr), attr)
	}
}

func marks(t *testing.T, fd int, name string) Marks {
	t.Helper()
	m, err := ReadMarks(fd, name)
	require.NoError(t, err)
	return m
}

func hasAUFS(t *testing.T, fd int, name string) bool {
	t.Helper()
	has, err := HasAUFS(fd, name)
	require.NoError(t, err)
	return has
}
