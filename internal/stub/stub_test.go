package stub

import (
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

func TestText(t *testing.T) {
	require.Len(t, Text(), Size)
	require.Contains(t, string(Text()), "layerfs settle")
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "1 2 3 4", Record{Private, "a b c", NewKey()}.String(), Record{"pool", "x", strings.Repeat("k", keyLength)}.String()} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, ok := Parse(text)
		if ok && r.String() != text {
			t.Errorf("%q became %q", text, r)
		}
		name := DeviceName(text)
		if len(name) > 255 || strings.ContainsAny(name, "/\n\x00 ") || !utf8.ValidString(name) || name == DeviceName(text) {
			t.Errorf("%q is no name for the device of %q", name, text)
		}
	})
}

// An upper keeps its id, and a copy of it gets another.
func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	open := func(name string) (root, own int) {
		require.NoError(t, os.MkdirAll(dir+"/"+name+"/own", 0755))
		root, err := sys.OpenRoot(dir + "/" + name)
		require.NoError(t, err)
		own, err = sys.OpenDir(root, "own")
		require.NoError(t, err)
		t.Cleanup(func() { sys.Close(root); sys.Close(own) })
		return root, own
	}
	root, own := open("a")
	require.Empty(t, PeekIdentity(own))
	id, err := Identity(root, own)
	require.NoError(t, err)
	again, err := Identity(root, own)
	require.NoError(t, err)
	require.Equal(t, id, again)
	require.Equal(t, id, PeekIdentity(own))

	root2, own2 := open("b")
	text, err := os.ReadFile(dir + "/a/own/id")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/b/own/id", text, 0600))
	other, err := Identity(root2, own2)
	require.NoError(t, err)
	require.NotEqual(t, id, other)
}

// An inode is told from one that had its number before.
func TestInode(t *testing.T) {
	t.Setenv("TMPDIR", "/var/tmp") // not a tmpfs
	dir := t.TempDir()
	fd, err := sys.OpenRoot(dir)
	require.NoError(t, err)
	defer sys.Close(fd)
	make := func() string {
		require.NoError(t, os.WriteFile(dir+"/f", nil, 0644))
		s, err := Inode(fd, "f")
		require.NoError(t, err)
		return s
	}
	first := make()
	require.NoError(t, unix.Unlink(dir+"/f"))
	require.NotEqual(t, first, make())
}
