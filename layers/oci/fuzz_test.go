package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// FuzzApply unpacks whatever comes into a directory that has something in it,
// beside one that must stay as it is and to which links in it lead. What was
// accepted must be a branch that can be written as a layer, and that layer must
// be accepted and come out the same.
func FuzzApply(f *testing.F) {
	for _, specs := range [][]string{
		{"a=1", "d/", "d/b=2", "l->d", "p|", "h=>a"},
		{".wh.a=", "d/", "d/.wh.b=", "d/.wh..wh..opq=", ".wh.d="},
		{"../x=1"}, {"out/keep=1"}, {"l->../out", "l/x=1", "h=>l/keep", "l/.wh.keep="},
		{"link/keep=1", "link/.wh.keep=", "link/.wh..wh..opq=", "h=>link/keep"},
		{".wh..wh.plnk/", ".wh..wh.plnk/1.2=x", "a=>.wh..wh.plnk/1.2"}, {"a%1:3", "b%0:0", "old%0:0"},
		{".->/etc"}, {"./", ".wh..wh..opq=", "a/b/c/d/e=1", "a/b=1", "a/b/"}, {".wh..=", ".wh..wh.layerfs.apply/x=1"},
		{"a=1", "a/b=1"}, {"old/", "old/x=1", "old=1", "old/y=1", ".wh.old="},
	} {
		data := layer(f, specs...)
		f.Add(data)
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, _ = w.Write(data)
		_ = w.Close()
		f.Add(z.Bytes())
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"x", "d/", "s"} {
		h, _ := entry(name + map[bool]string{true: "", false: "="}[name == "d/"])
		h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "b", "SCHILY.xattr.user.overlay.opaque": "y"}
		_ = w.WriteHeader(h)
	}
	_ = w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		top := t.TempDir()
		in, out := filepath.Join(top, "in"), filepath.Join(top, "out")
		write(t, top, "out/keep=1", "in/old/x=1", "in/.wh.d=")
		require.NoError(t, os.Symlink("../out", filepath.Join(in, "link")))
		before := fingerprint(t, out)
		_, err := apply(t, in, data)
		require.Equal(t, before, fingerprint(t, out))
		left, rerr := os.ReadDir(top)
		require.NoError(t, rerr)
		require.Len(t, left, 2, "something was made outside")
		require.NoDirExists(t, filepath.Join(in, stageDir))
		if err != nil {
			return
		}
		low := t.TempDir()
		write(t, low, "old/x=1", "d/e=1", "a=1")
		again := t.TempDir()
		written, _ := diff(t, in, low)
		_, err = apply(t, again, written)
		require.NoError(t, err)
		if len(written) == 1024 {
			return // no difference, the root's attributes included
		}
		repeated, _ := diff(t, again, low)
		require.True(t, bytes.Equal(written, repeated), "%v\n%v", entryNames(t, written), entryNames(t, repeated))
	})
}

// fingerprint is what must not change of a directory with the file keep in it.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	text := ""
	for _, name := range []string{"", "keep"} {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(filepath.Join(dir, name), &st))
		st.Atim = unix.Timespec{}
		text += string(names(t, dir)[0]) + statText(&st)
	}
	return text
}
