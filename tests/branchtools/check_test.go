package branchtools

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// An upper whose daemon was killed is found unclean; a repair is as good as
// the next mount.
func TestCheckAfterKill(t *testing.T) {
	for _, br := range []bool{false, true} {
		s := newStage(t)
		opts, args := s.options("auto"), s.checkArgs()
		if br {
			opts = "br=" + s.P("u") + "=rw:" + s.P("l") + "=ro:" + s.P("l2") + "=ro"
			args = []string{"check", "--lower", s.P("l"), "--lower", s.P("l2"), s.P("u")}
		}
		m := s.Mount(opts)
		everything(t, m.Point)
		want := harness.Dump(t, m.Point, harness.DumpOptions{})
		require.NoError(t, unix.Kill(m.Pid, unix.SIGKILL))
		m.Died()
		require.True(t, harness.Eventually(harness.Moment, func() bool { return !harness.Alive(m.Pid) }))
		harness.Detach(t, m.Point)

		r := s.Layerfs(args...)
		require.Equal(t, 6, r.Code, r.Stdout+r.Stderr)
		require.Contains(t, r.Stdout, "did not end cleanly")
		require.Contains(t, s.ok(append(args, "--repair")...), "all repaired")
		require.Contains(t, s.ok(args...), "clean")
		m = s.Mount(opts)
		require.Equal(t, want, harness.Dump(t, m.Point, harness.DumpOptions{}))
		m.Unmount()
	}
}

// damage makes of an upper with a change of every kind one with something wrong
// of every kind that does not change what is shown. u is in dialect aufs.
func (s *stage) damage() {
	s.T.Helper()
	m := s.Mount(s.options("aufs"))
	everything(s.T, m.Point)
	m.Unmount()
	s.Tree("u", `
.wh.d=
.wh.moved=
d/.wh.below=
d/.wh..wh.new.00ff=
.wh.nobody=
.wh..wh.probe=
moved/.wh..wh.convert=
e/.wh..wh..opq.tmp=
full/name=1
.wh.full=
`)
	for _, name := range []string{"a", "moved/x"} { // also in another dialect
		require.NoError(s.T, os.Remove(s.P("u", filepath.Dir(name), ".wh."+filepath.Base(name))))
		require.NoError(s.T, unix.Mknod(s.P("u", name), unix.S_IFCHR, 0))
	}
	require.NoError(s.T, unix.Lsetxattr(s.P("u/d"), harness.TrustedNS()+"overlay.opaque", []byte("y"), 0))
	s.Sh("find u -depth -type d -exec touch -d 2002-02-02 {} +; mkdir was; cp -a u w was")
}

func TestRepair(t *testing.T) {
	s := newStage(t)
	s.damage()
	seen := s.seen()
	r := s.Layerfs(s.checkArgs("--json")...)
	require.Equal(t, 6, r.Code, r.Stderr)
	var report struct {
		Format   string
		Left     int
		Findings []struct{ Kind, Path, Wrong, Repair string }
		Notes    []string
	}
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &report), r.Stdout)
	require.Equal(t, "aufs "+harness.TrustedNS()[:len(harness.TrustedNS())-1], report.Format)
	require.Equal(t, len(report.Findings), report.Left)
	require.Greater(t, report.Left, 10)
	for _, f := range report.Findings {
		require.NotEmpty(t, f.Repair, "%v", f)
	}
	require.Contains(t, s.ok(s.checkArgs("--repair")...), "all repaired")
	require.Contains(t, s.ok(s.checkArgs()...), "clean")
	require.Equal(t, seen, s.seen())
	require.Empty(t, s.Sh("find u -type d -newermt 2002-02-03"), "directories keep their times")
}

// TestRepairKilled: see the package comment.
func TestRepairKilled(t *testing.T) {
	s := newStage(t)
	s.damage()
	seen := s.seen()
	for n := 1; s.killed(n, seen, s.checkArgs("--repair")...); n++ {
		require.Less(t, n, 200, "the repair never ends")
		s.ok(s.checkArgs("--repair")...)
		require.Contains(t, s.ok(s.checkArgs()...), "clean")
		require.Equal(t, seen, s.seen(), "after a second run")
	}
	require.Equal(t, seen, s.seen())
}

func TestCheckRefuses(t *testing.T) {
	s := newStage(t)
	require.NoError(t, os.WriteFile(s.P("file"), nil, 0644))
	for name, c := range map[string]struct {
		code int
		says string
		args []string
	}{
		"no branch":      {2, "operand", nil},
		"unknown flag":   {2, "no-such", []string{"--no-such", s.P("u")}},
		"missing":        {3, s.P("gone"), []string{s.P("gone")}},
		"missing lower":  {3, s.P("gone"), []string{"--lower", s.P("gone"), s.P("u")}},
		"missing work":   {3, s.P("gone"), []string{"--workdir", s.P("gone"), s.P("u")}},
		"a file":         {2, s.P("file"), []string{s.P("file")}},
		"work is a file": {2, s.P("file"), []string{"--workdir", s.P("file"), s.P("u")}},
	} {
		r := s.Layerfs(append([]string{"check"}, c.args...)...)
		require.Equal(t, c.code, r.Code, "%s: %s", name, r.Stderr)
		require.Contains(t, r.Stderr, c.says, name)
		require.Empty(t, r.Stdout, name)
	}
	for _, cmd := range []string{"check", "convert"} {
		require.Contains(t, s.ok(cmd, "--help"), "Example:")
	}
}

// A fresh upper, one that was never mounted, and one that is in order are clean.
func TestCleanUppers(t *testing.T) {
	s := newStage(t)
	require.Contains(t, s.ok("check", s.P("u")), "clean")
	for _, dialect := range dialects {
		s.Sh("rm -rf u w; mkdir u w")
		m := s.Mount(s.options(dialect))
		everything(t, m.Point)
		m.Unmount()
		start := time.Now()
		require.Contains(t, s.ok(s.checkArgs()...), dialect)
		require.Less(t, time.Since(start), 10*time.Second)
	}
}
