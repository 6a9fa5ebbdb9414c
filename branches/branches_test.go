package branches

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// tree makes files in a fresh directory: a name that ends in / is a
// directory, "name=char" a whiteout device, anything else an empty file.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		p := filepath.Join(dir, strings.TrimSuffix(n, "=char"))
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0755))
		switch {
		case strings.HasSuffix(n, "/"):
			require.NoError(t, os.MkdirAll(p, 0755))
		case strings.HasSuffix(n, "=char"):
			require.NoError(t, unix.Mknod(p, unix.S_IFCHR, 0))
		default:
			require.NoError(t, os.WriteFile(p, nil, 0644))
		}
	}
	return dir
}

func openStack(t *testing.T, dirs ...string) *Stack {
	t.Helper()
	cfg := Config{}
	for _, d := range dirs {
		cfg.Branches = append(cfg.Branches, Spec{Path: d, Mode: RO})
	}
	s, err := Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// walkTo looks up a path.
func walkTo(t *testing.T, s *Stack, path string) Resolution {
	t.Helper()
	d := s.Root()
	var res Resolution
	for _, name := range strings.Split(path, "/") {
		require.NotNil(t, d, path)
		var err error
		res, err = s.Lookup(d, name)
		require.NoError(t, err)
		d = res.Dir
	}
	return res
}

func names(t *testing.T, s *Stack, d *Dir) (out []string) {
	t.Helper()
	entries, err := s.List(d)
	require.NoError(t, err)
	for _, e := range entries {
		out = append(out, e.Name)
	}
	return out
}

// Every listed name must resolve and every resolved name must be listed: the
// two are written separately and must agree about whiteouts.
func TestListAgreesWithLookup(t *testing.T) {
	s := openStack(t,
		tree(t, "a=char", ".wh.b", "c", ".wh.c", "d/x", ".wh.d", "e/.wh..wh..opq", "e/top", "odd/.wh.dir/"),
		tree(t, "a", "b", "c", "d/below", "e/below", "f/.wh.g", "odd/dir", "f=char/"),
		tree(t, "a", "b", "f/g", "f/h", "z"))
	want := map[string][]string{
		"":    {"c", "d", "e", "odd", "f", "z"},
		"d":   {"x"},
		"e":   {"top"},
		"odd": {"dir"},
	}
	for path, list := range want {
		d := s.Root()
		if path != "" {
			d = walkTo(t, s, path).Dir
		}
		got := names(t, s, d)
		if path == "" {
			got = remove(got, "f=char")
		}
		require.ElementsMatch(t, list, got, path)
		for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "x", "below", "top", "odd", "dir", "z"} {
			res, err := s.Lookup(d, name)
			require.NoError(t, err)
			require.Equal(t, contains(list, name), res.Kind != NotFound, "%s/%s", path, name)
		}
	}
	require.ElementsMatch(t, []string{"h"}, names(t, s, walkTo(t, s, "f").Dir))
}

func remove(list []string, name string) (out []string) {
	for _, n := range list {
		if n != name {
			out = append(out, n)
		}
	}
	return out
}

func contains(list []string, name string) bool {
	return len(remove(list, name)) != len(list)
}

func TestRedirects(t *testing.T) {
	top := tree(t, "moved/new", "rel/", "plain/")
	set := func(name, target string) {
		require.NoError(t, unix.Lsetxattr(filepath.Join(top, name), "user.overlay.redirect", []byte(target), 0))
	}
	set("moved", "/old/place")
	set("rel", "was")
	mid := tree(t, "old/place/mid", "was/w", "plain/p")
	bottom := tree(t, "old/place/low", "moved/hidden", "rel/hidden", "was/v")
	s := openStack(t, top, mid, bottom)
	require.ElementsMatch(t, []string{"new", "mid", "low"}, names(t, s, walkTo(t, s, "moved").Dir))
	require.ElementsMatch(t, []string{"w", "v"}, names(t, s, walkTo(t, s, "rel").Dir))
	require.ElementsMatch(t, []string{"p"}, names(t, s, walkTo(t, s, "plain").Dir))
	require.Equal(t, NotFound, walkTo(t, s, "moved/hidden").Kind)
}

// What hides a directory to a lookup by its name hides it to one that comes
// by a redirect: a whiteout beside a directory on the way, an opaque root.
func TestRedirectStopsWhereNamesDo(t *testing.T) {
	top := tree(t, "new/")
	require.NoError(t, unix.Lsetxattr(filepath.Join(top, "new"), "user.overlay.redirect", []byte("/b/c"), 0))
	bottom := tree(t, "b/c/low")
	beside := openStack(t, top, tree(t, "b/", ".wh.b"), bottom)
	require.Empty(t, names(t, beside, walkTo(t, beside, "new").Dir))
	root := openStack(t, top, tree(t, "b/c/mid", ".wh..wh..opq"), bottom)
	require.ElementsMatch(t, []string{"mid"}, names(t, root, walkTo(t, root, "new").Dir))
}

// Where a new name may go: at or above the branch whose whiteout hides it, and
// in a directory not below the branch where that directory's own walk ended.
func TestLimits(t *testing.T) {
	dirs := []string{tree(t, "d/", "e/"), tree(t, "d/.wh.x", "e/.wh..wh..opq"), tree(t, "d/x", "e/x")}
	var cfg Config
	for _, dir := range dirs {
		cfg.Branches = append(cfg.Branches, Spec{Path: dir, Mode: RW})
	}
	cfg.AufsStyle = true
	s, err := Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	d, e := walkTo(t, s, "d"), walkTo(t, s, "e")
	res, err := s.Lookup(d.Dir, "x")
	require.NoError(t, err)
	require.Equal(t, 1, res.Limit.Index)
	require.Equal(t, 1, s.Lowest(d.Dir, res.Limit))
	require.Greater(t, d.Dir.Floor(), 2)
	require.Equal(t, 1, e.Dir.Floor())
	require.Len(t, e.Dir.Parts(), 2)
	require.Equal(t, 0, s.ForCreate(e.Dir, nil, false).Index)
	require.Equal(t, 1, s.AtOrAbove(s.Writable()[2], e.Dir.Floor()).Index)
}

// A redirect in the only branch that has the parent must be followed too:
// such is a stack whose lower was once an upper.
func TestRedirectBelowPureDirectory(t *testing.T) {
	top := tree(t, "new/dir/")
	require.NoError(t, unix.Lsetxattr(filepath.Join(top, "new/dir"), "user.overlay.redirect", []byte("/orig"), 0))
	s := openStack(t, tree(t, "x"), top, tree(t, "orig/f"))
	require.ElementsMatch(t, []string{"f"}, names(t, s, walkTo(t, s, "new/dir").Dir))
}

func TestLowestWhiteoutHidesNothingAndIsNotShown(t *testing.T) {
	s := openStack(t, tree(t, "a", ".wh.b", "c=char"))
	require.ElementsMatch(t, []string{"a"}, names(t, s, s.Root()))
	require.Equal(t, NotFound, walkTo(t, s, "c").Kind)
}

func TestManyBranches(t *testing.T) {
	var dirs []string
	for i := 0; i < 128; i++ {
		dirs = append(dirs, tree(t, "d/"+strings.Repeat("x", i+1)))
	}
	s := openStack(t, dirs...)
	require.Len(t, names(t, s, walkTo(t, s, "d").Dir), 128)
}

func TestBadStacks(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(tree(t, "f"), "f")
	up, work := filepath.Join(dir, "u"), filepath.Join(dir, "w")
	for _, d := range []string{up, work, filepath.Join(up, "in")} {
		require.NoError(t, os.MkdirAll(d, 0755))
	}
	rw := Spec{Path: up, Mode: RW}
	for name, c := range map[string]struct {
		cfg   Config
		class errs.Class
		says  string
	}{
		"no branch":          {Config{}, errs.Usage, "lowerdir="},
		"missing":            {Config{Branches: []Spec{{Path: dir + "/nope", Mode: RO}}}, errs.NotFound, "nope"},
		"a file":             {Config{Branches: []Spec{{Path: file, Mode: RO}}}, errs.Usage, "not a directory"},
		"no work":            {Config{Branches: []Spec{rw}}, errs.Usage, "workdir="},
		"missing work":       {Config{Branches: []Spec{rw}, WorkDir: dir + "/nope"}, errs.NotFound, "nope"},
		"work in upper":      {Config{Branches: []Spec{rw}, WorkDir: up + "/in"}, errs.Usage, "overlap"},
		"mount in upper":     {Config{Branches: []Spec{rw}, WorkDir: work, Mountpoint: up + "/in"}, errs.Usage, "inside the upper"},
		"upper twice":        {Config{Branches: []Spec{rw, {Path: up, Mode: RO}}, WorkDir: work}, errs.Usage, "given twice"},
		"lower in upper":     {Config{Branches: []Spec{rw, {Path: up + "/in", Mode: RO}}, WorkDir: work}, errs.Usage, "inside the writable"},
		"branch in mount":    {Config{Branches: []Spec{{Path: up + "/in", Mode: RO}}, Mountpoint: up}, errs.Usage, "inside the mountpoint"},
		"work on another fs": {Config{Branches: []Spec{rw}, WorkDir: "/dev/shm"}, errs.Usage, "different file systems"},
		"unknown dialect":    {Config{Branches: []Spec{rw}, WorkDir: work, Dialect: "vms"}, errs.Usage, "vms"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(c.cfg)
			if s != nil {
				s.Close()
			}
			require.Error(t, err)
			require.Equal(t, c.class, errs.Of(err), err)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestDialectIsRememberedAndNeverMixed(t *testing.T) {
	dir := t.TempDir()
	up, work := filepath.Join(dir, "u"), filepath.Join(dir, "w")
	require.NoError(t, os.Mkdir(up, 0755))
	require.NoError(t, os.Mkdir(work, 0755))
	cfg := Config{Branches: []Spec{{Path: up, Mode: RW}}, WorkDir: work, Dialect: "aufs"}
	s, err := Open(cfg)
	require.NoError(t, err)
	_, err = Open(cfg)
	require.Equal(t, errs.Busy, errs.Of(err), "a second writable mount")
	s.Close()
	cfg.Dialect = "auto"
	s, err = Open(cfg)
	require.NoError(t, err)
	require.Equal(t, "aufs", s.Upper().Format.Dialect.String())
	s.Close()
	cfg.Dialect = "xattr"
	_, err = Open(cfg)
	require.Equal(t, errs.Corrupt, errs.Of(err))
}
