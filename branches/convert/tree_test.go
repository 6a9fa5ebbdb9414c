package convert

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/whiteout"
)

// testDir is a directory on a file system that takes user. attributes, which
// /tmp need not be.
func testDir(t *testing.T) string {
	t.Helper()
	base := os.Getenv("LAYERFS_TEST_DIR")
	if base == "" {
		base = "/var/tmp"
	}
	dir, err := os.MkdirTemp(base, "layerfs-test-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func mkdir(t *testing.T, path string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(path, 0755))
	return path
}

func write(t *testing.T, path, content string) {
	t.Helper()
	mkdir(t, filepath.Dir(path))
	require.NoError(t, os.WriteFile(path, []byte(content), 0644))
}

func set(t *testing.T, path, attr, value string) {
	t.Helper()
	require.NoError(t, unix.Lsetxattr(path, attr, []byte(value), 0))
}

// merged lists what a stack of branches shows: where each name comes from. The
// depth is bounded, since redirects can lead in circles.
func merged(t *testing.T, dirs ...string) []string {
	t.Helper()
	cfg := branches.Config{ReadOnly: true}
	for _, d := range dirs {
		cfg.Branches = append(cfg.Branches, branches.Spec{Path: d, Mode: branches.RO})
	}
	s, err := branches.Open(cfg)
	require.NoError(t, err)
	defer s.Close()
	var out []string
	var walk func(d *branches.Dir, path string, depth int)
	walk = func(d *branches.Dir, path string, depth int) {
		entries, err := s.List(d)
		require.NoError(t, err)
		sort.Slice(entries, func(i, j int) bool { return entries[i].Name < entries[j].Name })
		for _, e := range entries {
			res, err := s.Lookup(d, e.Name)
			require.NoError(t, err)
			p := path + "/" + e.Name
			require.NotEqual(t, branches.NotFound, res.Kind, "%s is listed only", p)
			line := fmt.Sprintf("%s %d %o %d", p, res.Where.Branch.Index, res.Stat.Mode, res.Stat.Ino)
			if res.Kind == branches.Directory {
				line += fmt.Sprintf(" %d.%09d", res.Stat.Mtime.Sec, res.Stat.Mtime.Nsec)
			}
			out = append(out, line)
			if res.Kind == branches.Directory && depth > 0 {
				walk(res.Dir, p, depth-1)
				res.Dir.Close()
			}
		}
	}
	walk(s.Root(), "", 4)
	return out
}

// forest grows random branches.
type forest struct {
	*rand.Rand
	t      *testing.T
	spaces []whiteout.Namespace // that this user has
}

func newForest(t *testing.T, seed uint64) *forest {
	f := &forest{rand.New(rand.NewPCG(seed, 0)), t, []whiteout.Namespace{whiteout.User}}
	if os.Geteuid() == 0 {
		f.spaces = append(f.spaces, whiteout.Trusted)
	}
	return f
}

func (f *forest) ns() string { return string(f.spaces[f.IntN(len(f.spaces))]) }

// lower grows a tree without marks.
func (f *forest) lower(dir string, depth int) {
	for _, name := range strings.Split("abcdefgh", "") {
		p := filepath.Join(dir, name)
		switch k := f.IntN(6); {
		case k < 2 && depth > 0:
			f.lower(mkdir(f.t, p), depth-1)
		case k < 5:
			write(f.t, p, name)
		}
	}
}

// upper grows a tree with marks in all dialects.
func (f *forest) upper(dir string, depth int) {
	for _, name := range strings.Split("abcdefgh", "") {
		p := filepath.Join(dir, name)
		if f.IntN(4) == 0 {
			write(f.t, filepath.Join(dir, ".wh."+name), "")
		}
		switch k := f.IntN(9); {
		case k < 3 && depth > 0:
			f.upper(mkdir(f.t, p), depth-1)
			f.mark(p)
		case k < 4:
			write(f.t, p, "up")
		case k < 5:
			require.NoError(f.t, unix.Mknod(p, unix.S_IFCHR, 0))
		case k < 7:
			write(f.t, p, "")
			set(f.t, p, f.ns()+whiteoutAttr, "")
		}
	}
	if f.IntN(3) == 0 {
		set(f.t, dir, f.ns()+opaqueAttr, "x")
	}
}

// mark gives a directory marks, which may contradict each other.
func (f *forest) mark(dir string) {
	redirect := []string{"/a", "/b/c", "d", "/gone", "../a", "e", "a/b"}[f.IntN(7)]
	for range f.IntN(3) {
		switch f.IntN(6) {
		case 0:
			write(f.t, filepath.Join(dir, whiteout.OpaqueFile), "")
		case 1:
			write(f.t, filepath.Join(dir, whiteout.OpaqueFile), redirect)
		case 2:
			set(f.t, dir, f.ns()+opaqueAttr, "y")
		case 3:
			set(f.t, dir, f.ns()+redirectAttr, redirect)
		case 4:
			set(f.t, dir, "user.fuseoverlayfs.opaque", "y")
		case 5:
			set(f.t, dir, f.ns()+opaqueAttr, "junk")
		}
	}
}

// old gives all directories times long ago, so that changes can be told.
func old(t *testing.T, root string) {
	t.Helper()
	n := int64(0)
	require.NoError(t, filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		n++
		ts := unix.Timespec{Sec: 1e9 + n, Nsec: n}
		return unix.UtimesNano(p, []unix.Timespec{ts, ts})
	}))
}
