package drivers

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/internal/faults"
	"github.com/layerfs/layerfs/tests/harness"
)

// crashCase is a command that is killed.
type crashCase struct {
	name    string
	prepare [][]string
	args    []string
}

// crashCases are killed before each of their system calls, those of whatIsThere by a test
// of their own.
var crashCases = []crashCase{
	{"create", nil, []string{"container", "create", "--from", "base", "x"}},
	{"rm", [][]string{{"container", "create", "--from", "base", "x"}}, []string{"container", "rm", "x"}},
	{"commit", nil, []string{"container", "commit", "c", "x"}},
	{"import", nil, []string{"layer", "import", "x", "base.tar"}},
}

var whatIsThere = []crashCase{
	{"layer rm", [][]string{{"layer", "import", "x", "base.tar"}}, []string{"layer", "rm", "x"}},
	{"image rm", [][]string{{"layer", "import-image", "image.tar"}}, []string{"layer", "rm", "im:1"}},
	{"mount", [][]string{{"container", "create", "--from", "base", "x"}}, []string{"container", "mount", "x"}},
	{"umount", [][]string{{"container", "create", "--from", "base", "x"}, {"container", "mount", "x"}}, []string{"container", "umount", "x"}},
	{"import-image", nil, []string{"layer", "import-image", "--name", "x", "image.tar"}},
}

// TestKilled: killed at any moment, a command has happened or not, and after the next
// one nothing half-made is there. LAYERFS_TEST_FULL=1 takes every call, else it is every
// eleventh or $LAYERFS_TEST_STEP, others with each driver.
func TestKilled(t *testing.T) { killedAll(t, crashCases) }

// TestKilledToo is the same with what is killed less dangerously.
func TestKilledToo(t *testing.T) { killedAll(t, whatIsThere) }

func killedAll(t *testing.T, cases []crashCase) {
	step := harness.Setting("LAYERFS_TEST_STEP", 11)
	switch {
	case harness.Full():
		step = 1
	case testing.Short():
		step = 37
	}
	for d, p := range places() {
		t.Run(p.String(), func(t *testing.T) {
			s := newStore(t, p)
			s.fill()
			n := 1 + d%step
			for _, c := range cases {
				for {
					calls := s.killed(c, n)
					if calls < n { // go on in the next command
						n -= calls
						break
					}
					n += step
					require.Less(t, n, 2000, "the command never ends")
				}
			}
		})
	}
}

// fill makes what the cases work on.
func (s *store) fill() {
	s.ok("layer", "import", "base", s.tar("base.tar", "a/f=1\nb=2"))
	s.ok("container", "create", "--from", "base", "c")
	s.script(`echo 3 > "$1"/b; rm -r "$1"/a`, s.ok("container", "mount", "c"))
	s.dockerArchive("image.tar", "im:1", layered[:2])
}

// killed runs the command of c with a process that dies before its n-th system call
// that changes something, and returns how many there were until then, fewer than n when
// it came to its end.
func (s *store) killed(c crashCase, n int) int {
	t := s.T
	t.Helper()
	for _, args := range c.prepare {
		s.ok(args...)
	}
	before := s.contents()
	plan, calls := s.kill(n, c.args)
	when := fmt.Sprintf("%s killed before %s, call %d", c.name, plan.Op(n), n)

	// Nobody knows yet what has happened: any command tidies up.
	now := s.contents()
	s.tidy(when)
	if calls == n {
		t.Log(when)
		s.okAgain(c)
	} else {
		require.NotEqual(t, before, now, "%s has no effect", c.name)
	}
	s.undo()
	return calls
}

// kill runs a command with a process that dies before its n-th call that changes
// something, and returns how many there were; 0 has it come to its end.
func (s *store) kill(n int, args []string) (plan *faults.Plan, calls int) {
	s.T.Helper()
	plan, err := faults.Create(s.P("faults"))
	require.NoError(s.T, err)
	require.NoError(s.T, os.Chmod(s.P("faults"), 0666))
	plan.Kills(n)
	s.runPlanned(args)
	return plan, plan.Disarm()
}

// runPlanned runs a command that looks for the plan.
func (s *store) runPlanned(args []string) {
	cmd := exec.Command(harness.Bin(), append(s.flags(), args...)...)
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), "LAYERFS_FAULTS="+s.P("faults"))
	if s.ordinary {
		harness.AsOrdinary(cmd)
	}
	_ = cmd.Run()
}

// contents is what the store shows.
func (s *store) contents() []string {
	var list []string
	for _, l := range s.lines("layer", "ls") {
		list = append(list, "layer "+field(l, 0)+" on "+field(l, 2))
	}
	for _, l := range s.lines("container", "ls") {
		list = append(list, fmt.Sprintf("container %s on %s mounted %t", field(l, 0), field(l, 1), strings.Contains(l, "/")))
	}
	slices.Sort(list)
	return list
}

// tidy requires that the driver's directory has exactly the trees that the index knows.
func (s *store) tidy(when string) {
	s.T.Helper()
	var want []string
	for _, listing := range []string{"layer", "container"} {
		out := s.ok(listing, "ls", "--json")
		for _, part := range strings.Split(out, `"tree": "`)[1:] {
			id, _, _ := strings.Cut(part, `"`)
			want = append(want, id)
		}
	}
	slices.Sort(want)
	if s.driver == "devicemapper" { // which has numbers
		require.Len(s.T, s.trees(), len(want), when)
		return
	}
	require.Equal(s.T, want, s.trees(), when)
}

// okAgain requires that the command can be given again, unless it has happened.
func (s *store) okAgain(c crashCase) {
	s.T.Helper()
	r := s.run(c.args...)
	if r.Code == 4 && strings.Contains(r.Stderr, "already") || r.Code == 3 {
		return
	}
	require.Zero(s.T, r.Code, "%s again: %s", c.name, r.Stderr)
}

// undo removes what the cases make.
func (s *store) undo() {
	s.run("container", "rm", "-f", "x")
	base := ""
	for _, l := range s.lines("layer", "ls") {
		switch name := field(l, 0); name {
		case "base":
			base = field(l, 1)
		case "x", "y", "im:1":
			s.ok("layer", "rm", name)
		}
	}
	require.Equal(s.T, []string{"container c on " + base + " mounted true", "layer base on -"}, s.contents())
}

// TestAtOnce: many commands at once, each with a result that one after the other could
// have as well.
func TestAtOnce(t *testing.T) {
	each(t, func(s *store) {
		s.ok("layer", "import", "base", s.tar("base.tar", "a/f=1\nb=2"))
		s.dockerArchive("image.tar", "im:1", layered)
		var wg sync.WaitGroup
		errs := make(chan string, 100)
		do := func(args ...string) string {
			r := s.run(args...)
			if r.Code != 0 {
				errs <- fmt.Sprintf("%v: %d %s", args, r.Code, r.Stderr)
			}
			return strings.TrimSpace(r.Stdout)
		}
		for i := range 6 {
			name := fmt.Sprintf("c%d", i)
			wg.Go(func() {
				for range 3 {
					do("container", "create", "--from", "base", name)
					m := do("container", "mount", name)
					if m == "" {
						return
					}
					s.script(`echo x > "$1"/new; rm "$1"/b`, m)
					do("container", "commit", name, "l"+name)
					do("container", "umount", name)
					do("container", "rm", name)
					do("layer", "rm", "l"+name)
				}
			})
			wg.Go(func() { do("layer", "import-image", s.P("image.tar")) })
		}
		var created int
		var mu sync.Mutex
		for range 4 {
			wg.Go(func() {
				if s.run("container", "create", "--from", "base", "same").Code == 0 {
					mu.Lock()
					created++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		close(errs)
		for e := range errs {
			s.T.Error(e)
		}
		require.Equal(s.T, 1, created, "one name was given to several containers")
		require.Len(s.T, s.lines("container", "ls"), 1)
		require.Len(s.T, s.lines("layer", "ls"), 1+len(layered))
		s.tidy("at the end")
	})
}
