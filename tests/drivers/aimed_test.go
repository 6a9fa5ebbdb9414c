package drivers

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// aims are the moments at which a short run kills: the calls named so, the first of each.
// LAYERFS_TEST_FULL=1 takes every call.
type aims []string

// at returns the numbers of the calls, of those that a command makes.
func (a aims) at(calls []string) (list []int) {
	for i, call := range calls {
		if harness.Full() || slices.Contains(a, call) && slices.Index(calls, call) == i {
			list = append(list, i+1)
		}
	}
	return list
}

// calls are those of a command, which comes to its end.
func (s *store) calls(args ...string) []string {
	s.T.Helper()
	plan, n := s.kill(0, args)
	calls := plan.Ops(n)
	require.NotEmpty(s.T, calls)
	return calls
}

// at returns a store like s in another directory.
func (s *store) at(root string) *store {
	other := *s
	other.root = root
	return &other
}

// TestKilledFirst: whoever makes a store may die at any moment. The next has a whole one,
// with one base device.
func TestKilledFirst(t *testing.T) {
	each(t, func(s *store) {
		t := s.T
		if s.driver == "thin" {
			t.Skip("the calls of the pool's process count too, and are never the same twice")
		}
		s.tar("base.tar", "a/f=1\nb=2")
		first := s.at(s.root + "-first")
		calls := first.calls("info")
		first.clear()
		for _, n := range (aims{"index commit", "dm load", "exec mount"}).at(calls) {
			again := s.at(fmt.Sprintf("%s-%d", s.root, n))
			plan, made := again.kill(n, []string{"info"})
			require.Equal(t, n, made, "the command has ended before call %d (%v)", n, calls)
			t.Logf("killed before %s, call %d of %d", plan.Op(n), n, len(calls))
			again.ok("layer", "import", "base", s.P("base.tar"))
			again.ok("container", "create", "--from", "base", "c")
			require.Equal(t, "2", again.script(`cat "$1"/b`, again.ok("container", "mount", "c")))
			again.tidy(fmt.Sprintf("killed before %s, call %d", plan.Op(n), n))
			again.clear()
			require.NoError(t, os.RemoveAll(again.root))
		}
	})
}

// needsMapper skips for drivers without devices in the kernel's device-mapper.
func needsMapper(t testing.TB, p place) {
	if p.driver != "devicemapper" {
		t.Skip("devices of device-mapper are devicemapper's (tests/vm)")
	}
}

// TestKilledActivating: a pool that is half in the kernel is put there whole.
func TestKilledActivating(t *testing.T) {
	each(t, func(s *store) {
		t := s.T
		needsMapper(t, s.place)
		s.fill()
		s.ok("container", "umount", "c")
		s.ok("device", "deactivate")
		calls := s.calls("info")
		for _, n := range (aims{"dm load", "dm resume"}).at(calls) {
			s.ok("device", "deactivate")
			plan, made := s.kill(n, []string{"info"})
			require.Equal(t, n, made, "the command has ended before call %d (%v)", n, calls)
			t.Logf("killed before %s, call %d of %d", plan.Op(n), n, len(calls))
			require.Equal(t, "3\n", s.script(`cat "$1"/b`, s.ok("container", "mount", "c")))
			s.ok("container", "umount", "c")
			s.tidy(fmt.Sprintf("killed before %s, call %d", plan.Op(n), n))
		}
	})
}

// TestKilledGrowing: when whoever makes the base device larger dies, the next has it so,
// and what is in it too.
func TestKilledGrowing(t *testing.T) {
	each(t, func(s *store) {
		t := s.T
		needsMapper(t, s.place)
		s.ok("info")
		const more = 256 // MiB
		size := 512
		larger := func() []string {
			size += more
			return []string{"--storage-opt", fmt.Sprintf("dm.basesize=%dM", size), "info"}
		}
		calls := s.calls(larger()...)
		for _, n := range (aims{"exec resize2fs"}).at(calls) {
			args := larger()
			plan, made := s.kill(n, args)
			require.Equal(t, n, made, "the command has ended before call %d (%v)", n, calls)
			t.Logf("killed before %s, call %d of %d", plan.Op(n), n, len(calls))
			s.ok(args...)
			s.more = args[:2]
			s.ok("container", "create", "c")
			kib := s.script(`df -k --output=size "$1" | tail -1`, s.ok("container", "mount", "c"))
			var got int
			_, err := fmt.Sscan(kib, &got)
			require.NoError(t, err)
			require.Greater(t, got, (size-more)<<10, "killed before %s, call %d: KiB of the file system", plan.Op(n), n)
			s.ok("container", "rm", "-f", "c")
		}
	})
}

// TestKilledBetween: what is left where the kernel has half of something is what the test
// says, and the next command, which needs just that, comes to its end.
func TestKilledBetween(t *testing.T) {
	create := []string{"container", "create", "--from", "base", "x"}
	commit := []string{"container", "commit", "c", "x"}
	each(t, func(s *store) {
		t := s.T
		needsMapper(t, s.place)
		s.fill()
		counted := map[string][]string{} // the calls of a command
		for _, c := range []struct {
			crashCase
			after, before, left string
			next                []string
		}{
			{crashCase{"an origin that is suspended", nil, commit}, "dm suspend", "dm message", "SUSPENDED", []string{"container", "commit", "c", "y"}},
			{crashCase{"an origin without a table", nil, commit}, "dm create", "dm load", "Tables present: None", create},
			{crashCase{"a device whose table is not used", [][]string{create}, []string{"container", "mount", "x"}}, "dm create", "dm resume", "Tables present: INACTIVE", []string{"container", "commit", "x", "y"}},
			{crashCase{"an origin that is suspended, and a snapshot of it", nil, commit}, "dm suspend", "dm resume", "SUSPENDED", []string{"container", "rm", "-f", "c"}},
		} {
			for _, args := range c.prepare {
				s.ok(args...)
			}
			if calls := counted[c.args[1]]; calls == nil {
				counted[c.args[1]] = s.calls(c.args...)
				s.undo()
				for _, args := range c.prepare {
					s.ok(args...)
				}
			}
			calls := counted[c.args[1]]
			first := max(slices.Index(calls, c.after), 0)
			n := first + slices.Index(calls[first:], c.before) + 1
			require.Greater(t, n, first+1, "%s is not after %s among %v", c.before, c.after, calls)
			plan, made := s.kill(n, c.args)
			require.True(t, made == n && plan.Op(n) == c.before, "%s: killed before %s instead of %s", c.name, plan.Op(n), c.before)
			there := strings.Join(strings.Fields(s.Sh("dmsetup info")), " ")
			require.Equal(t, 1, strings.Count(there, c.left), "%s: %s", c.name, there)
			s.ok(c.next...)
			if !slices.Contains(c.next, "rm") {
				s.tidy(c.name)
				s.undo()
			}
		}
	})
}

// TestKilledReading: a layer that a command had mounted, to compare with it, does not stay
// so for ever.
func TestKilledReading(t *testing.T) {
	each(t, func(s *store) {
		t := s.T
		needsMapper(t, s.place)
		s.fill()
		commit := []string{"container", "commit", "c", "x"}
		n := slices.Index(s.calls(commit...), "umount") + 1
		s.ok("layer", "rm", "x")
		plan, made := s.kill(n, commit)
		require.True(t, made == n && plan.Op(n) == "umount", "killed before %s", plan.Op(n))
		s.ok("container", "umount", "c")
		require.Contains(t, s.Sh("cat /proc/self/mountinfo"), s.root+"/devicemapper/mnt/")
		s.ok("device", "deactivate")
		require.NotContains(t, s.Sh("cat /proc/self/mountinfo"), s.root+"/")
		require.Equal(t, "3\n", s.script(`cat "$1"/b`, s.ok("container", "mount", "c")))
	})
}
