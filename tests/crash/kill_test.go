package crash

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/internal/faults"
	"github.com/layerfs/layerfs/tests/harness"
)

// several stands, among the dialects, for a union in which the upper of the two
// lowers is writable as well: aufs is what both are written in.
const several = "several"

// stage is one small union with a plan.
type stage struct {
	*harness.Env
	plan *faults.Plan
	opts string
}

func newStage(t *testing.T, dialect string) *stage {
	t.Helper()
	e := harness.New(t)
	if dialect == several {
		return &stage{e, e.Plan(), "br=" + e.P("u") + "=rw:" + e.P("l") + "=rw:" + e.P("l2") + "=ro"}
	}
	return &stage{e, e.Plan(), "lowerdir=" + e.P("l") + ":" + e.P("l2") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w") + ",whiteout=" + dialect}
}

// fill makes the branches as they are before a case, and the mount with what
// the case prepares.
func (s *stage) fill(c *change) *harness.Mount {
	s.T.Helper()
	s.Sh("chmod -R u+rwx u w l l2; rm -rf u w l l2; mkdir u w l l2")
	s.Tree("l", lowers).Tree("l2", lowers2)
	s.Sh("find l l2 -depth -exec touch -h -d 2001-01-01 {} +")
	m := s.Mount(s.opts)
	for _, p := range c.prep {
		require.NoError(s.T, p(m.Point), "preparing")
	}
	return m
}

// dump lists the tree. Times are those of files only, and only whether they
// are old: a directory's change when a copy is put into it and put back, and
// a crash may come between.
func (s *stage) dump(m *harness.Mount, c *change) []string {
	s.T.Helper()
	lines := harness.Dump(s.T, m.Point, harness.DumpOptions{Times: !c.written})
	for i, l := range lines {
		before, after, found := strings.Cut(l, " mtime=")
		if !found {
			continue
		}
		age, rest, _ := strings.Cut(after, " ")
		switch {
		case strings.Contains(before, " 04"):
			age = ""
		case strings.HasPrefix(age, "978"): // 2001
			age = " old"
		default:
			age = " new"
		}
		lines[i] = before + age + " " + rest
	}
	return lines
}

// outcome is the tree before and after the change.
type outcome struct{ before, after []string }

func (s *stage) outcome(c *change) outcome {
	s.T.Helper()
	m := s.fill(c)
	o := outcome{before: s.dump(m, c)}
	m.Unmount()
	m = s.fill(c)
	require.NoError(s.T, c.do(m.Point), "the change itself")
	live := s.dump(m, c)
	m = m.Remount(s.opts)
	o.after = s.dump(m, c)
	m.Unmount()
	require.Equal(s.T, o.after, live, "a remount changes the tree")
	require.NotEqual(s.T, o.before, o.after, "nothing is changed")
	return o
}

// TestKilled: see the package comment. LAYERFS_TEST_FULL=1 takes every call,
// else it is every third, others in each dialect.
func TestKilled(t *testing.T) {
	step := 3
	switch {
	case harness.Full():
		step = 1
	case testing.Short():
		step = 11
	}
	for d, dialect := range []string{"overlay", "aufs", "xattr", several} {
		for i, c := range changes {
			t.Run(dialect+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				if dialect == "overlay" {
					harness.RequireRoot(t)
				}
				s := newStage(t, dialect)
				o := s.outcome(&c)
				for n := 1 + (i+d)%step; s.killed(&c, &o, n); n += step {
					require.Less(t, n, 200, "the change never ends")
				}
			})
		}
	}
}

// killed makes the change with a daemon that dies before its n-th system call
// that changes something, and looks what is there after the next mount. It
// reports false when the daemon survived.
func (s *stage) killed(c *change, o *outcome, n int) bool {
	t := s.T
	t.Helper()
	m := s.fill(c)
	s.plan.Kills(n)
	_ = c.do(m.Point) // fails, or not: the answer may have been sent before
	calls := s.plan.Disarm()
	if calls < n {
		m.Unmount()
		return false
	}
	m.Died()
	require.True(t, harness.Eventually(5*time.Second, func() bool { return !harness.Alive(m.Pid) }))
	harness.Detach(t, m.Point)
	m = s.Mount(s.opts)
	got := s.dump(m, c)
	at := fmt.Sprintf("killed before change %d: %s", n, strings.Join(s.plan.Ops(n), ", "))
	if !equal(got, o.before) && !equal(got, o.after) {
		require.Equal(t, o.before, got, "%s\nnor is it as after:\n%s", at, strings.Join(o.after, "\n"))
	}
	m.Unmount()
	return true
}

func equal(a, b []string) bool { return strings.Join(a, "\n") == strings.Join(b, "\n") }
