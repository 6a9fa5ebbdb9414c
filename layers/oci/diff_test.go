package oci

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/errs"
)

// diff returns the layer of up over low.
func diff(t testing.TB, up string, low ...string) (data []byte, warnings []string) {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, Diff(&b, branches.Comparison{Uppers: []string{up}, Lowers: low}, func(s string) { warnings = append(warnings, s) }))
	return b.Bytes(), warnings
}

// headers reads a layer, contents in the field Uname.
func headers(t testing.TB, data []byte) (list []*tar.Header) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return list
		}
		require.NoError(t, err)
		require.Empty(t, h.Uname+h.Gname, "owners are numbers")
		content, err := io.ReadAll(r)
		require.NoError(t, err)
		h.Uname = string(content)
		list = append(list, h)
	}
}

func entryNames(t testing.TB, data []byte) (list []string) {
	t.Helper()
	for _, h := range headers(t, data) {
		name := h.Name
		if h.Typeflag == tar.TypeLink {
			name += "=>" + h.Linkname
		}
		list = append(list, name)
	}
	return list
}

// sameTimes gives everything one time, so that only what is meant differs.
func sameTimes(t testing.TB, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		require.NoError(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
			ts := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
		}))
	}
}

func TestCanonical(t *testing.T) {
	for _, c := range []struct {
		rule    string
		low, up []string
		want    []string
	}{
		{"nothing has changed", []string{"d/a=1"}, []string{"d/a=1"}, nil},
		{"a change and its parents", []string{"d/e/a=1", "f=1"}, []string{"d/e/a=2"}, []string{"./", "d/", "d/e/", "d/e/a"}},
		{"whiteouts come before their siblings", []string{"a/x=1", "z=1"}, []string{"a/n=1", "a/.wh.x=", "b=1", ".wh.z="}, []string{"./", ".wh.z", "a/", "a/.wh.x", "a/n", "b"}},
		{"opaque where all is gone", []string{"d/a=1", "d/b=1"}, []string{"d/.wh..wh..opq=", "d/n=1"}, []string{"./", "d/", "d/.wh..wh..opq", "d/n"}},
		{"as by whiteouts", []string{"d/a=1", "d/b=1"}, []string{"d/.wh.a=", "d/.wh.b=", "d/n=1"}, []string{"./", "d/", "d/.wh..wh..opq", "d/n"}},
		{"a single one is told by name", []string{"d/a=1"}, []string{"d/.wh..wh..opq="}, []string{"./", "d/", "d/.wh.a"}},
		{"not the root, which kernel overlay would not take for opaque", []string{"a=1", "b=1"}, []string{".wh..wh..opq="}, []string{"./", ".wh.a", ".wh.b"}},
		{"not where something has come back", []string{"d/a=1", "d/b=1"}, []string{"d/.wh..wh..opq=", "d/a=2"}, []string{"./", "d/", "d/.wh.b", "d/a"}},
		{"not where no lower has the directory", []string{"a=1"}, []string{"d/.wh..wh..opq=", "d/n=1"}, []string{"./", "d/", "d/n"}},
		{"a whiteout of nothing is none", []string{"a=1"}, []string{".wh.b=", "a=1"}, nil},
		{"a directory in place of a file needs none", []string{"a=1"}, []string{"a/x=1", ".wh.a="}, []string{"./", "a/", "a/x"}},
		{"nor a file in place of a directory", []string{"a/x=1"}, []string{"a=1"}, []string{"./", "a"}},
		{"records never get in", nil, []string{".wh..wh.aufs=", ".wh..wh.plnk/1=x", "a=1"}, []string{"./", "a"}},
		{"names are in order of their bytes", nil, []string{"b=1", "B=1", "a.b=1", "a/c=1", "ä=1", "a b=1"}, []string{"./", "B", "a/", "a/c", "a b", "a.b", "b", "ä"}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			low, up := t.TempDir(), t.TempDir()
			write(t, low, c.low...)
			write(t, up, c.up...)
			sameTimes(t, low, up)
			data, warnings := diff(t, up, low)
			require.Empty(t, warnings)
			require.Equal(t, c.want, entryNames(t, data))
			again := t.TempDir()
			require.NoError(t, os.Chmod(again, 0755))
			_, err := apply(t, again, data)
			require.NoError(t, err)
			if c.want == nil {
				sameTimes(t, again)
			}
			repeated, _ := diff(t, again, low)
			require.True(t, bytes.Equal(data, repeated), "apply and diff again: %v", entryNames(t, repeated))
		})
	}
}

func TestEntries(t *testing.T) {
	up := t.TempDir()
	long := strings.Repeat("n", 200)
	write(t, up, "a=1", long+"/"+long+"=x", "big=1", "plain=1", "x=1", "l->"+strings.Repeat("t", 150))
	require.NoError(t, os.Link(filepath.Join(up, "x"), filepath.Join(up, "c")))
	sameTimes(t, up)
	p := filepath.Join(up, "a")
	require.NoError(t, os.Chmod(p, 0640|fs.ModeSetuid|fs.ModeSticky))
	require.NoError(t, unix.Lsetxattr(p, "user.k=%", []byte("\x00v\n"), 0))
	require.NoError(t, unix.Lsetxattr(p, "user.layerfs.origin", []byte("o"), 0))
	require.NoError(t, os.Chtimes(p, time.Time{}, time.Unix(-5, 250000000)))
	data, warnings := diff(t, up)
	require.Empty(t, warnings)
	by := map[string]*tar.Header{}
	for _, h := range headers(t, data) {
		by[h.Name] = h
		require.True(t, h.AccessTime.IsZero() && h.ChangeTime.IsZero())
	}
	a := by["a"]
	require.EqualValues(t, 05640, a.Mode)
	require.True(t, time.Unix(-5, 250000000).Equal(a.ModTime), a.ModTime)
	require.Equal(t, map[string]string{"SCHILY.xattr.user.k%3D%25": "\x00v\n", "mtime": "-4.75"}, a.PAXRecords)
	require.Empty(t, by["plain"].PAXRecords, "whole seconds and short names need no PAX")
	require.Equal(t, "x", by[long+"/"+long].Uname, "long names")
	require.Len(t, by["l"].Linkname, 150)
	require.Equal(t, byte(tar.TypeReg), by["c"].Typeflag, "the first name has the content")
	require.Equal(t, "c", by["x"].Linkname)
	if os.Geteuid() == 0 {
		require.NoError(t, os.Lchown(filepath.Join(up, "big"), 1<<31, 3e6))
		require.NoError(t, unix.Mknod(filepath.Join(up, "dev"), unix.S_IFBLK|0600, int(unix.Mkdev(259, 300000))))
		data, _ := diff(t, up)
		for _, h := range headers(t, data) {
			switch h.Name {
			case "big":
				require.Equal(t, []int{1 << 31, 3e6}, []int{h.Uid, h.Gid})
			case "dev":
				require.Equal(t, []int64{259, 300000}, []int64{h.Devmajor, h.Devminor})
			}
		}
	}
}

// No tar can hold a socket; what it has replaced is gone nonetheless.
func TestSockets(t *testing.T) {
	low, up := t.TempDir(), t.TempDir()
	write(t, low, "was=1")
	for _, name := range []string{"new", "was"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(up, name)})
		require.NoError(t, err)
		defer l.Close()
	}
	data, warnings := diff(t, up, low)
	require.Equal(t, []string{"./", ".wh.was"}, entryNames(t, data))
	require.Len(t, warnings, 2)
	require.Contains(t, warnings[0], "socket")
}

// The owners that a rootless store keeps in an attribute are the owners.
func TestOverriddenOwners(t *testing.T) {
	low, up := t.TempDir(), t.TempDir()
	write(t, up, "a=1")
	require.NoError(t, unix.Lsetxattr(up, "user.containers.override_stat", []byte("0:0:0755:dir"), 0))
	require.NoError(t, unix.Lsetxattr(filepath.Join(up, "a"), "user.containers.override_stat", []byte("12:34:4711:file"), 0))
	data, _ := diff(t, up, low)
	h := headers(t, data)[1]
	require.Equal(t, []int{12, 34, 04711}, []int{h.Uid, h.Gid, int(h.Mode)})
	require.Empty(t, h.PAXRecords["SCHILY.xattr.user.containers.override_stat"])
}

func TestMetacopyIsRefused(t *testing.T) {
	up := t.TempDir()
	write(t, up, "a=1")
	require.NoError(t, unix.Lsetxattr(filepath.Join(up, "a"), "user.overlay.metacopy", nil, 0))
	err := Diff(io.Discard, branches.Comparison{Uppers: []string{up}}, func(string) {})
	require.ErrorContains(t, err, "/a: ")
	require.Equal(t, errs.Unsupported, errs.Of(err))
}

func TestToFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "out.tar")
	fill := func(w io.Writer) error { _, err := w.Write([]byte("whole")); return err }
	for range 2 { // the second time in place of the first
		require.NoError(t, ToFile(name, fill))
		require.Equal(t, []string{"out.tar=whole"}, names(t, dir))
	}
	failing := func(w io.Writer) error { _, _ = w.Write([]byte("ha")); return io.ErrShortWrite }
	require.Error(t, ToFile(name, failing))
	require.Error(t, ToFile(filepath.Join(dir, "other"), failing))
	require.Equal(t, []string{"out.tar=whole"}, names(t, dir), "a failure leaves nothing and destroys nothing")
	require.NoError(t, os.Symlink("out.tar", filepath.Join(dir, "link")))
	require.NoError(t, ToFile(filepath.Join(dir, "link"), fill))
	require.Equal(t, []string{"link->out.tar", "out.tar=whole"}, names(t, dir))
	require.NoError(t, ToFile("/dev/null", fill))
	require.Equal(t, errs.NotFound, errs.Of(ToFile(filepath.Join(dir, "no/where"), fill)))
}
