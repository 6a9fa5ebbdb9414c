package branchtools

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/faults"
	"github.com/layerfs/layerfs/tests/harness"
)

var dialects = []string{"overlay", "aufs", "xattr"}

// lower is what the branches below hold.
const lower = `
a=1
b=2 @user.a=1
c/x=3
c/y=4 !0600
c/deep/z=5
d/x=6
d/gone=7
e/f/g/h=8
hard1=same
hard2=>hard1
link->a
pipe|
`

const lower2 = `
c/low=9
d/low=10
e/f/low=11
only=12
`

// stage is one union.
type stage struct {
	*harness.Env
	plan *faults.Plan
}

func newStage(t *testing.T) *stage {
	t.Helper()
	harness.RequireFUSE(t)
	e := harness.New(t).Tree("l", lower).Tree("l2", lower2)
	s := &stage{e, e.Plan()}
	s.Sh("find l l2 -depth -exec touch -h -d 2001-01-01 {} +")
	return s
}

// options of the usual mount; "auto" takes what the upper is written in.
func (s *stage) options(dialect string) string {
	return "lowerdir=" + s.P("l") + ":" + s.P("l2") + ",upperdir=" + s.P("u") + ",workdir=" + s.P("w") + ",whiteout=" + dialect
}

// shown lists what a writable mount of the upper shows, times of directories included.
func (s *stage) shown() []string {
	s.T.Helper()
	m := s.Mount(s.options("auto"))
	defer m.Unmount()
	return harness.Dump(s.T, m.Point, harness.DumpOptions{Times: true})
}

// seen lists what the upper shows as a branch that is only read. Times are
// left out: those of the directory at which somebody is killed change.
func (s *stage) seen() []string {
	s.T.Helper()
	m := s.Mount("lowerdir=" + s.P("u") + ":" + s.P("l") + ":" + s.P("l2"))
	defer m.Unmount()
	return harness.Dump(s.T, m.Point, harness.DumpOptions{})
}

// ok runs the program and wants it to succeed.
func (s *stage) ok(args ...string) string {
	s.T.Helper()
	r := s.Layerfs(args...)
	require.Zero(s.T, r.Code, "layerfs %s: %s%s", strings.Join(args, " "), r.Stdout, r.Stderr)
	return r.Stdout
}

func (s *stage) convert(to string, more ...string) string {
	s.T.Helper()
	return s.ok(append([]string{"convert", "--to", to, "--workdir", s.P("w"), s.P("u")}, more...)...)
}

func (s *stage) checkArgs(more ...string) []string {
	return append([]string{"check", "--workdir", s.P("w"), "--lower", s.P("l"), "--lower", s.P("l2"), s.P("u")}, more...)
}

// everything makes a change of every kind that leaves a mark.
func everything(t testing.TB, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	require.NoError(t, os.Remove(at("a")))
	require.NoError(t, os.Remove(at("d/gone")))
	require.NoError(t, os.Remove(at("c/x")))
	require.NoError(t, os.Rename(at("c"), at("moved")))
	require.NoError(t, os.Rename(at("e/f"), at("e/g")))
	require.NoError(t, os.RemoveAll(at("d")))
	require.NoError(t, os.Mkdir(at("d"), 0750))
	require.NoError(t, os.WriteFile(at("d/new"), []byte("new"), 0644))
	require.NoError(t, os.Chmod(at("hard1"), 0600))
	require.NoError(t, os.Remove(at("hard2")))
	require.NoError(t, os.Remove(at("moved/low")))
}

// history makes random changes.
func history(t testing.TB, root string, rnd *rand.Rand, steps int) {
	t.Helper()
	names := strings.Fields("a b c d e f c/x c/deep d/x d/low e/f e/f/g moved moved/x new new/sub hard1 hard2 link only")
	pick := func() string { return filepath.Join(root, names[rnd.IntN(len(names))]) }
	made := 0
	for range steps {
		var err error
		switch p := pick(); rnd.IntN(8) {
		case 0, 1:
			err = os.RemoveAll(p)
		case 2:
			err = os.WriteFile(p, []byte(fmt.Sprint(rnd.IntN(100))), 0644)
		case 3:
			err = os.Mkdir(p, 0755)
		case 4, 5:
			err = os.Rename(p, pick())
		case 6:
			err = os.Link(p, pick())
		case 7:
			err = unix.Lsetxattr(p, "user.b", []byte("x"), 0)
		}
		if err == nil {
			made++
		}
	}
	require.Greater(t, made, steps/8, "hardly anything was changed")
}
