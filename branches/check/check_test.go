package check

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/branches/offline"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
)

// bench is a branch up with a lower low and a work directory.
type bench struct {
	pools         stub.Pools
	t             *testing.T
	up, low, work string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	base := os.Getenv("LAYERFS_TEST_DIR")
	if base == "" {
		base = "/var/tmp" // a file system with user. attributes
	}
	dir, err := os.MkdirTemp(base, "layerfs-test-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{t: t, up: dir + "/up", low: dir + "/low", work: dir + "/work"}
	for _, d := range []string{"up/d", "low/d/below", "low/gone", "low/other", "work/work", "work/layerfs/links"} {
		require.NoError(t, os.MkdirAll(dir+"/"+d, 0755))
	}
	for _, f := range []string{"low/a", "low/b", "low/d/x", "low/d/y", "low/other/o", "up/d/mine"} {
		require.NoError(t, os.WriteFile(dir+"/"+f, []byte(f), 0644))
	}
	b.record("aufs user")
	return b
}

func (b *bench) record(format string) { b.set("", "user.layerfs.format", format) }

func (b *bench) file(name, content string) {
	b.t.Helper()
	require.NoError(b.t, os.MkdirAll(filepath.Dir(b.up+"/"+name), 0755))
	require.NoError(b.t, os.WriteFile(b.up+"/"+name, []byte(content), 0644))
}

func (b *bench) dir(name string) {
	b.t.Helper()
	require.NoError(b.t, os.MkdirAll(b.up+"/"+name, 0755))
}

func (b *bench) device(name string) {
	b.t.Helper()
	require.NoError(b.t, unix.Mknod(b.up+"/"+name, unix.S_IFCHR, 0))
}

func (b *bench) set(name, attr, value string) {
	b.t.Helper()
	require.NoError(b.t, unix.Lsetxattr(b.up+"/"+name, attr, []byte(value), 0))
}

// keep makes a file in WORKDIR/layerfs.
func (b *bench) keep(name, content string) {
	b.t.Helper()
	require.NoError(b.t, os.WriteFile(b.work+"/layerfs/"+name, []byte(content), 0600))
}

// link enters the file name of the branch into the link index.
func (b *bench) link(name, key string) {
	b.t.Helper()
	require.NoError(b.t, os.Link(b.up+"/"+name, b.work+"/layerfs/links/"+key))
}

func (b *bench) ino(name string) uint64 {
	b.t.Helper()
	var st unix.Stat_t
	require.NoError(b.t, unix.Lstat(b.up+"/"+name, &st))
	return st.Ino
}

func (b *bench) run(repair bool, lowers ...string) *Report {
	b.t.Helper()
	u, err := offline.OpenAlone(b.up, b.work)
	require.NoError(b.t, err)
	defer u.Close()
	r, err := Run(u, Options{Lowers: lowers, Repair: repair, Pools: b.pools})
	require.NoError(b.t, err)
	return r
}

// merged lists what the union shows and from where.
func (b *bench) merged() []string {
	b.t.Helper()
	s, err := branches.Open(branches.Config{ReadOnly: true, Branches: []branches.Spec{{Path: b.up, Mode: branches.RO}, {Path: b.low, Mode: branches.RO}}})
	require.NoError(b.t, err)
	defer s.Close()
	var out []string
	var walk func(d *branches.Dir, path string)
	walk = func(d *branches.Dir, path string) {
		entries, err := s.List(d)
		require.NoError(b.t, err)
		sort.Slice(entries, func(i, j int) bool { return entries[i].Name < entries[j].Name })
		for _, e := range entries {
			res, err := s.Lookup(d, e.Name)
			require.NoError(b.t, err)
			if res.Kind == branches.NotFound {
				continue // what is called like a whiteout and is none hides from listings only
			}
			out = append(out, fmt.Sprintf("%s/%s %d %o", path, e.Name, res.Where.Branch.Index, res.Stat.Mode))
			if res.Kind == branches.Directory {
				walk(res.Dir, path+"/"+e.Name)
			}
		}
	}
	walk(s.Root(), "")
	return out
}

func kinds(r *Report) []string {
	out := []string{}
	for _, f := range r.Findings {
		out = append(out, f.Kind+" "+f.Path)
	}
	sort.Strings(out)
	return out
}

func TestFindings(t *testing.T) {
	for _, c := range findings {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			c.make(b)
			in := func(list []string) []string {
				out := []string{}
				for _, s := range list {
					out = append(out, strings.Replace(s, "WORK", b.work, 1))
				}
				return out
			}
			var lowers []string
			if strings.Contains(c.name, "dangling") || strings.Contains(c.name, "needless") {
				lowers = []string{b.low}
			}
			before := b.merged()
			require.Equal(t, in(c.found), kinds(b.run(false, lowers...)), "found")
			require.Equal(t, before, b.merged(), "looking changes nothing")
			fd, err := sys.OpenRoot(b.up)
			require.NoError(t, err)
			defer sys.Close(fd)
			old, err := sys.FStat(fd)
			require.NoError(t, err)

			r := b.run(true, lowers...)
			require.Equal(t, in(c.found), kinds(r), "found when repairing")
			require.Equal(t, len(c.left), r.Left, "%v", r.Findings)
			require.Equal(t, in(c.left), kinds(b.run(false, lowers...)), "what is left")
			now, err := sys.FStat(fd)
			require.NoError(t, err)
			if len(c.gone) == 0 {
				require.Equal(t, old.Mtime, now.Mtime, "the times of a directory stay")
			}
			var want []string
			for _, l := range before {
				if !contains(c.gone, l) {
					want = append(want, l)
				}
			}
			require.Equal(t, len(before)-len(c.gone), len(want), "%v was shown", c.gone)
			require.Equal(t, want, b.merged(), "what is shown")
		})
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// A frozen count is turned into what is to be added to the links on disk.
func TestFrozenCount(t *testing.T) {
	b := newBench(t)
	b.file("a", "1")
	b.set("a", "user.layerfs.link", key+" =5")
	b.link("a", key)
	require.Len(t, b.run(true).Findings, 2, "the root is not marked either")
	var buf [64]byte
	n, err := unix.Lgetxattr(b.up+"/a", "user.layerfs.link", buf[:])
	require.NoError(t, err)
	require.Equal(t, key+" 3", string(buf[:n]), "two links on disk, five shown")
}

// Every finding that the package comment lists is in the table, and the other
// way round.
func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	listed := map[string]bool{"unreadable": true, "stub-origin": true} // TestUnreadable, TestRebind
	for _, c := range findings {
		for _, f := range c.found {
			listed[strings.Fields(f)[0]] = true
		}
	}
	documented := map[string]bool{}
	for _, line := range strings.Split(string(doc), "\n") {
		if rest, ok := strings.CutPrefix(line, "//\t"); ok && rest[0] != ' ' {
			documented[strings.Fields(rest)[0]] = true
		}
	}
	require.Equal(t, documented, listed)
}

func TestUnreadable(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root reads everything")
	}
	b := newBench(t)
	require.NoError(t, os.Chmod(b.up+"/d", 0))
	defer os.Chmod(b.up+"/d", 0755)
	require.Equal(t, []string{"unreadable /d"}, kinds(b.run(false)))
}

func TestNotes(t *testing.T) {
	b := newBench(t)
	require.Len(t, b.run(false).Notes, 1, "without lowers")
	require.Empty(t, b.run(false, b.low).Notes)
	b.work = ""
	require.Len(t, b.run(false, b.low).Notes, 1, "without the work directory")
}

func TestMissingLower(t *testing.T) {
	b := newBench(t)
	u, err := offline.OpenAlone(b.up, "")
	require.NoError(t, err)
	defer u.Close()
	_, err = Run(u, Options{Lowers: []string{b.low + "/nowhere"}})
	require.ErrorContains(t, err, "nowhere")
}
