package tests

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// In the specs of readCases these stand for a dialect's records:
//
//	WH:dir/name     a whiteout of name in dir
//	OPQ:dir/        dir is opaque
//
// and everything else is in the notation of harness.MkTree.
var readCases = []struct {
	name   string
	lowers []string // top first
	want   string
	absent string
}{
	{"one branch is itself", []string{"a=1\nd/b=2\nd/s->b"}, "a=1 d/ d/b=2 d/s->b", "x d/x"},
	{"union of names", []string{"a=1\nd/b=2", "c=3\nd/e=4"}, "a=1 c=3 d/ d/b=2 d/e=4", ""},
	{"the upper entry wins", []string{"a=top", "a=bottom"}, "a=top", ""},
	{"file over directory", []string{"a=top", "a/b=1\na/c=2"}, "a=top", "a/b"},
	{"directory over file", []string{"a/b=1", "a=bottom"}, "a/ a/b=1", ""},
	{"file ends the directory below it", []string{"d/x=1", "d=file", "d/y=2"}, "d/ d/x=1", "d/y"},
	{"whiteout hides a file", []string{"WH:/a", "a=1\nb=2"}, "b=2", "a"},
	{"whiteout hides a directory", []string{"WH:/d", "d/x=1\nb=2"}, "b=2", "d d/x"},
	{"whiteout in a subdirectory", []string{"WH:d/x", "d/x=1\nd/y=2"}, "d/ d/y=2", "d/x"},
	{"whiteout in the middle", []string{"a=1", "WH:/a\nWH:/b", "a=3\nb=3\nc=3"}, "a=1 c=3", "b"},
	{"directory above a whiteout", []string{"d/x=1", "WH:/d", "d/y=3"}, "d/ d/x=1", "d/y"},
	{"whiteout on the lowest", []string{"a=1", "WH:/a\nWH:/b\nWH:d/c"}, "a=1 d/", "b d/c"},
	{"whiteout alone", []string{"WH:/b"}, "", "b"},
	{"whiteout of what is not there", []string{"WH:/nothing\na=1", "b=2"}, "a=1 b=2", "nothing"},
	{"opaque directory", []string{"OPQ:d/\nd/x=1", "d/y=2"}, "d/ d/x=1", "d/y"},
	{"opaque and empty", []string{"OPQ:d/", "d/y=2\nd/e/f=3"}, "d/", "d/y d/e d/e/f"},
	{"opaque in the middle", []string{"d/x=1", "OPQ:d/\nd/m=2", "d/y=3"}, "d/ d/m=2 d/x=1", "d/y"},
	{"opaque below a file changes nothing", []string{"d=file", "OPQ:d/\nd/m=2"}, "d=file", ""},
	{"directories below an opaque one", []string{"OPQ:d/\nd/e/x=1", "d/e/y=2"}, "d/ d/e/ d/e/x=1", "d/e/y"},
	{"opaque root", []string{"OPQ:/\na=1", "b=2"}, "a=1", "b"},
	{"whiteout in an opaque directory", []string{"OPQ:d/\nd/x=1\nWH:d/y", "d/y=2\nd/z=3"}, "d/ d/x=1", "d/y d/z"},
	{"whiteouts in a chain", []string{"WH:/a", "a=2", "WH:/a", "a=4\nb=4"}, "b=4", "a"},
}

// readDialects are the ways in which a lower may say it.
var readDialects = []struct {
	name     string
	whiteout func(dir, name string) string
	opaque   func(dir string) string
	trusted  bool
	many     bool // over 128 branches too
}{
	{"char+trusted.overlay", charWhiteout, xattrOpaque("trusted.overlay.opaque"), true, false},
	{"char+user.overlay", charWhiteout, xattrOpaque("user.overlay.opaque"), false, true},
	{"char+user.fuseoverlayfs", charWhiteout, xattrOpaque("user.fuseoverlayfs.opaque"), false, false},
	{"aufs", aufsWhiteout, aufsOpaque, false, true},
	{"xattr trusted", xattrWhiteout("trusted."), xattrOpaque("trusted.overlay.opaque"), true, false},
	{"xattr user", xattrWhiteout("user."), xattrOpaque("user.overlay.opaque"), false, false},
	{"char+aufs opaque", charWhiteout, aufsOpaque, false, false},
	{"aufs+user.overlay opaque", aufsWhiteout, xattrOpaque("user.overlay.opaque"), false, false},
}

func charWhiteout(dir, name string) string { return dir + "/" + name + "%0:0" }
func aufsWhiteout(dir, name string) string { return dir + "/.wh." + name + "=" }
func aufsOpaque(dir string) string         { return dir + "/.wh..wh..opq=" }

func xattrOpaque(attr string) func(string) string {
	return func(dir string) string { return dir + "/ @" + attr + "=y" }
}

func xattrWhiteout(ns string) func(dir, name string) string {
	return func(dir, name string) string {
		return fmt.Sprintf("%s/%s= @%soverlay.whiteout=y\n%s/ @%soverlay.opaque=x", dir, name, ns, dir, ns)
	}
}

// translate replaces WH: and OPQ: by the records of a dialect.
func translate(spec string, whiteout func(dir, name string) string, opaque func(string) string) string {
	var out, marks []string
	for _, line := range strings.Split(spec, "\n") {
		switch {
		case strings.HasPrefix(line, "WH:"):
			i := strings.LastIndex(line, "/")
			out = append(out, whiteout("./"+line[3:i], line[i+1:]))
		case strings.HasPrefix(line, "OPQ:"):
			// Last, since y is to win over the x of an xattr whiteout.
			marks = append(marks, opaque("./"+line[4:]))
		default:
			out = append(out, line)
		}
	}
	return strings.Join(append(out, marks...), "\n")
}

func TestReadDialects(t *testing.T) {
	for _, d := range readDialects {
		t.Run(d.name, func(t *testing.T) {
			if d.trusted && !harness.Root() {
				t.Skip("root only: trusted. attributes")
			}
			for _, c := range readCases {
				t.Run(c.name, func(t *testing.T) {
					if strings.HasPrefix(d.name, "xattr") && c.name == "whiteout in an opaque directory" {
						t.Skip("one attribute says either y, opaque, or x, has whiteouts")
					}
					for _, total := range []int{1, 2, 5, 128} {
						if total < len(c.lowers) || total == 128 && (!d.many || testing.Short()) {
							continue
						}
						e := harness.New(t)
						lowers := layOut(e, total, func(i int) string {
							return translate(c.lowers[i], d.whiteout, d.opaque)
						}, len(c.lowers))
						// Lookups first: they must not depend on a listing.
						m := e.Mount("lowerdir=" + lowers)
						checkTree(t, m, c.want, c.absent, total)
						m.Unmount()
						m = e.Mount("lowerdir=" + lowers + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w"))
						checkTree(t, m, c.want, c.absent, total)
						m.Unmount()
					}
				})
			}
		})
	}
}

// layOut makes total lowers, of which the case's are spread evenly among
// empty ones, and returns the value of lowerdir=.
func layOut(e *harness.Env, total int, spec func(int) string, n int) string {
	at := map[int]int{}
	for i := 0; i < n; i++ {
		pos := 0
		if n > 1 {
			pos = i * (total - 1) / (n - 1)
		}
		at[pos] = i
	}
	dirs := make([]string, total)
	for i := range dirs {
		dirs[i] = fmt.Sprintf("b%d", i)
		text := ""
		if k, ok := at[i]; ok {
			text = spec(k)
		}
		e.Tree(dirs[i], text)
		dirs[i] = e.P(dirs[i])
	}
	return strings.Join(dirs, ":")
}

func checkTree(t *testing.T, m *harness.Mount, want, absent string, total int) {
	t.Helper()
	for _, name := range strings.Fields(absent) {
		_, err := os.Lstat(m.P(name))
		require.Error(t, err, "%s with %d branches", name, total)
		e := errno(err)
		require.True(t, e.Error() == "no such file or directory" || e.Error() == "not a directory", "%s: %v", name, err)
	}
	for _, name := range strings.Fields(want) {
		if i := strings.IndexAny(name, "=-"); i > 0 {
			require.FileExists(t, m.P(name[:i]), "with %d branches", total)
		}
	}
	require.Equal(t, strings.Fields(want), append([]string{}, harness.Names(t, m.Point)...), "with %d branches", total)
}

// In one branch an entry beats a whiteout of its own name, and the whiteout
// still hides what is below: OCI's rule.
func TestEntryAndWhiteoutInOneBranch(t *testing.T) {
	e := harness.New(t)
	e.Tree("l", "f=new\n.wh.f=\nd/x=1\n.wh.d=\ns->f\n.wh.s=")
	e.Tree("l2", "f=old\nd/y=2\ns/z=3\nother=4")
	m := e.Mount("lowerdir=" + e.P("l") + ":" + e.P("l2"))
	checkTree(t, m, "d/ d/x=1 f=new other=4 s->f", "d/y", 2)
}

func TestRedirectsInLowers(t *testing.T) {
	for _, ns := range []string{"trusted.", "user."} {
		t.Run(ns, func(t *testing.T) {
			if ns == "trusted." && !harness.Root() {
				t.Skip("root only: trusted. attributes")
			}
			e := harness.New(t)
			e.Tree("l", "a/new/ @"+ns+"overlay.redirect=/old/deep\na/new/top=1\nold%0:0\nb/sib2/ @"+ns+"overlay.redirect=sib\nb/sib%0:0")
			e.Tree("l2", "old/deep/x=1\nold/deep/y/z=2\nold/gone=3\nb/sib/q=4")
			m := e.Mount("lowerdir=" + e.P("l") + ":" + e.P("l2"))
			checkTree(t, m, "a/ a/new/ a/new/top=1 a/new/x=1 a/new/y/ a/new/y/z=2 b/ b/sib2/ b/sib2/q=4", "old b/sib", 2)
		})
	}
}

// A redirect in the second of three branches leads on from the third.
func TestRedirectInTheMiddle(t *testing.T) {
	e := harness.New(t)
	ns := harness.TrustedNS()
	e.Tree("l", "new/top=1\nold/mine=1")
	e.Tree("l2", "new/ @"+ns+"overlay.redirect=/old\nnew/mid=2\nold%0:0")
	e.Tree("l3", "old/low=3\nnew/never=3")
	m := e.Mount("lowerdir=" + e.P("l") + ":" + e.P("l2") + ":" + e.P("l3"))
	checkTree(t, m, "new/ new/low=3 new/mid=2 new/top=1 old/ old/mine=1", "new/never old/low", 3)
}

func TestBranchFormDefaults(t *testing.T) {
	e := harness.New(t)
	e.Tree("l", "a=1\nd/b=2\n.wh.c=").Tree("l2", "c=3\nd/e=4")
	m := e.Mount("br=" + e.P("u") + "=rw:" + e.P("l") + "=ro+wh:" + e.P("l2") + "=ro")
	checkTree(t, m, "a=1 d/ d/b=2 d/e=4", "c", 3)
	require.NoError(t, os.Remove(m.P("a")))
	m.Unmount()
	require.FileExists(t, e.P("u", ".wh.a"))
	m = e.Mount("br=" + e.P("u") + "=rw:" + e.P("l") + "=ro+wh:" + e.P("l2") + "=ro")
	checkTree(t, m, "d/ d/b=2 d/e=4", "a c", 3)
}

// A plain ro branch has no whiteouts, but .wh. names are never shown.
func TestPlainROBranchHasNoWhiteouts(t *testing.T) {
	e := harness.New(t)
	e.Tree("l", "a=1\n.wh.c=").Tree("l2", "c=3")
	m := e.Mount("br=" + e.P("u") + "=rw:" + e.P("l") + "=ro:" + e.P("l2") + "=ro")
	checkTree(t, m, "a=1 c=3", ".wh.c", 3)
}
