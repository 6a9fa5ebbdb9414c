package crash

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// errnos are what system calls fail with, in turn.
var errnos = []unix.Errno{unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EMFILE}

// TestFaults: see the package comment. The kernel keeps nothing, so that what
// it remembers cannot pass for what is there. LAYERFS_TEST_FULL=1 takes every
// call instead of every fifth, each with a new mount, and makes it fail in each way.
func TestFaults(t *testing.T) {
	for d, dialect := range []string{"overlay", "aufs", "xattr"} {
		for i, c := range changes {
			t.Run(dialect+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				if dialect == "overlay" {
					harness.RequireRoot(t)
				}
				s := newStage(t, dialect)
				s.opts += ",timeout=0"
				s.faults(&c, i+d)
			})
		}
	}
}

// faults makes the change fail at each of its calls in turn.
func (s *stage) faults(c *change, seed int) {
	full := harness.Full()
	o := s.outcome(c)
	if !full {
		s.faultsOf(c, &o, false, func(n int) unix.Errno {
			if (n+seed)%5 != 0 {
				return 0
			}
			return errnos[(n+seed)%len(errnos)]
		})
		return
	}
	for _, e := range errnos {
		s.faultsOf(c, &o, true, func(int) unix.Errno { return e })
	}
}

// faultsOf makes the call n fail with errno(n), and leaves out those where
// that is 0.
func (s *stage) faultsOf(c *change, o *outcome, fresh bool, errno func(n int) unix.Errno) {
	t := s.T
	t.Helper()
	m := s.fill(c)
	open := duplicates(m.Pid)
	for n := 1; ; n++ {
		require.Less(t, n, 300, "the change never ends")
		if errno(n) == 0 {
			continue
		}
		s.plan.Fails(n, errno(n), false)
		err := c.do(m.Point)
		calls := s.plan.Disarm()
		at := fmt.Sprintf("call %d fails with %s, the change with %v: %s", n, unix.ErrnoName(errno(n)), err, strings.Join(s.plan.Ops(n), ", "))
		s.judge(m, c, o, err, at)
		if calls < n {
			require.NoError(t, err, "nothing was made to fail")
			break
		}
		if err != nil && !errors.Is(err, errno(n)) {
			t.Errorf("another error: %s", at)
		}
		for path, times := range duplicates(m.Pid) {
			require.LessOrEqual(t, times, open[path]+1, "%s is open in the daemon: %s", path, at)
		}
		if err == nil || fresh {
			m = m.Remount(s.opts)
			s.judge(m, c, o, err, at+"; after a remount")
			m.Unmount()
			m = s.fill(c)
		}
	}
	m = m.Remount(s.opts)
	s.judge(m, c, o, nil, "after a remount at the end")
	m.Unmount()
}

// judge requires that the tree is as before a change that has failed, as after
// one that has not.
func (s *stage) judge(m *harness.Mount, c *change, o *outcome, err error, at string) {
	s.T.Helper()
	want := o.after
	if err != nil {
		want = o.before
	}
	require.Equal(s.T, want, s.dump(m, c), at)
}

// duplicates counts how often the daemon has each file open.
func duplicates(pid int) map[string]int {
	n := map[string]int{}
	for _, f := range harness.OpenFiles(pid) {
		if strings.HasPrefix(f, "/") && !strings.HasPrefix(f, "/dev/") {
			n[f]++
		}
	}
	return n
}
