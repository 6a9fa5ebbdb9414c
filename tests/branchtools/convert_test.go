package branchtools

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// Random histories, written in each dialect, are converted to each other one:
// the tree stays the same, and the next mount goes on writing.
func TestConvert(t *testing.T) {
	for _, from := range dialects {
		for _, to := range dialects {
			if from == to {
				continue
			}
			t.Run(from+" to "+to, func(t *testing.T) {
				t.Parallel()
				for range 3 {
					seed := uint64(time.Now().UnixNano())
					t.Logf("seed %d", seed)
					converted(t, from, to, rand.New(rand.NewPCG(seed, 0)))
				}
			})
		}
	}
}

func converted(t *testing.T, from, to string, rnd *rand.Rand) {
	s := newStage(t)
	m := s.Mount(s.options(from))
	history(t, m.Point, rnd, 60)
	m.Unmount()
	before := s.shown()
	require.Contains(t, s.convert(to), "converted from "+from)
	require.Equal(t, before, s.shown(), "converted from %s to %s", from, to)
	s.ok(s.checkArgs()...)
	require.Contains(t, s.convert(to), "already, 0 changes")

	m = s.Mount(s.options(to)) // which is refused in any other dialect
	history(t, m.Point, rnd, 30)
	m.Unmount()
	before = s.shown()
	s.ok(s.checkArgs()...)
	s.convert(from)
	require.Equal(t, before, s.shown(), "and back to %s", from)
	s.ok(s.checkArgs()...)
}

// Hard links, inode numbers and link counts survive, also when the records
// change their namespace.
func TestConvertNamespace(t *testing.T) {
	harness.RequireRoot(t)
	s := newStage(t)
	m := s.Mount(s.options("aufs"), "userxattr")
	everything(t, m.Point)
	require.NoError(t, os.Link(m.P("hard1"), m.P("hard3")))
	ino := harness.Stat(t, m.P("hard1")).Ino
	m.Unmount()
	before := s.shown()
	require.Contains(t, s.convert("overlay", "--namespace", "trusted"), "from aufs user to overlay trusted")
	require.Equal(t, before, s.shown())
	m = s.Mount(s.options("auto"))
	require.Equal(t, ino, harness.Stat(t, m.P("hard1")).Ino)
	m.Unmount()
	require.Empty(t, s.Sh("getfattr -dR -m '^user.(layerfs|overlay)' u | grep = || true"))
}

// What is converted to overlay is overlay's: the kernel shows the same.
func TestKernelReadsConverted(t *testing.T) {
	harness.RequireRoot(t)
	for _, from := range []string{"aufs", "xattr"} {
		s := newStage(t)
		m := s.Mount(s.options(from))
		everything(t, m.Point)
		m.Unmount()
		s.convert("overlay")
		dump := func(root string) []string {
			return harness.Dump(t, root, harness.DumpOptions{Times: true, Names: true})
		}
		m = s.Mount(s.options("auto"))
		want := dump(m.Point)
		m.Unmount()
		require.NoError(t, os.Mkdir(s.P("kw"), 0755))
		opts := fmt.Sprintf("lowerdir=%s:%s,upperdir=%s,workdir=%s,redirect_dir=on", s.P("l"), s.P("l2"), s.P("u"), s.P("kw"))
		require.NoError(t, unix.Mount("overlay", s.P("m"), "overlay", 0, opts))
		got := dump(s.P("m"))
		r := s.Layerfs("convert", "--to", "aufs", s.P("u"))
		require.NoError(t, unix.Unmount(s.P("m"), 0))
		require.Equal(t, want, got)
		require.Equal(t, 4, r.Code, "the kernel has it mounted: %s", r.Stderr)
		require.Contains(t, r.Stderr, s.P("m"))
	}
}

// TestConvertKilled: see the package comment. LAYERFS_TEST_FULL=1 takes every
// call, else it is every third.
func TestConvertKilled(t *testing.T) {
	step := 3
	if harness.Full() {
		step = 1
	}
	for i, from := range dialects {
		for j, to := range dialects {
			if from == to {
				continue
			}
			t.Run(from+" to "+to, func(t *testing.T) {
				t.Parallel()
				s := newStage(t)
				m := s.Mount(s.options(from))
				everything(t, m.Point)
				m.Unmount()
				s.Sh("mkdir was; cp -a u w was")
				seen, shown := s.seen(), s.shown()
				n, states := 1+(i+j)%step, ""
				for ; s.killed(n, seen, "convert", "--to", to, "--workdir", s.P("w"), s.P("u")); n += step {
					require.Less(t, n, 500, "the conversion never ends")
					r := s.Layerfs("mount", "-o", "backend=fuse,"+s.options("auto"), s.P("m"))
					if r.Code == 0 {
						s.Adopt(s.P("m"), s.options("auto")).Unmount()
						states += "m"
					} else {
						states += "r"
						require.Equal(t, 6, r.Code, r.Stderr)
						require.Contains(t, r.Stderr, "converting-to-"+to)
						c := s.Layerfs(s.checkArgs()...)
						require.Equal(t, 6, c.Code)
						require.Contains(t, c.Stdout, "layerfs convert --to "+to)
					}
					s.convert(to)
					s.ok(s.checkArgs()...)
					require.Equal(t, fileTimes(shown), fileTimes(s.shown()), "after a second run; first killed before call %d: %v", n, s.plan.Ops(n))
				}
				require.Regexp(t, "^m*r{4,}m?$", states, "mounted or refused: from the first change to the last it must be refused")
				require.Equal(t, shown, s.shown())
			})
		}
	}
}

// Each system call of a conversion fails in turn: what is shown stays, the user
// is told, and the next run completes it. LAYERFS_TEST_FULL=1 takes every call.
func TestConvertFails(t *testing.T) {
	step := 9
	if harness.Full() {
		step = 1
	}
	for i, from := range dialects {
		to := dialects[(i+1)%len(dialects)]
		t.Run(from+" to "+to, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			m := s.Mount(s.options(from))
			everything(t, m.Point)
			m.Unmount()
			s.Sh("mkdir was; cp -a u w was")
			seen, failed := s.seen(), 0
			for n := 1 + i; ; n += step {
				s.Sh("rm -rf u w; cp -a was/u was/w ./")
				s.plan.Fails(n, unix.ENOSPC, false)
				r := s.Layerfs("convert", "--to", to, "--workdir", s.P("w"), s.P("u"))
				if s.plan.Disarm() < n {
					break
				}
				at := fmt.Sprintf("call %d failed: %s: %s", n, s.plan.Op(n), r.Stderr)
				require.Equal(t, seen, s.seen(), at)
				if r.Code != 0 {
					failed++
					require.Contains(t, r.Stderr, "no space left", at)
					require.Equal(t, 5, r.Code, at)
					s.convert(to)
				}
				s.ok(s.checkArgs()...)
				require.Equal(t, seen, s.seen(), at)
			}
			require.Greater(t, failed, 10, "hardly a system call is counted")
		})
	}
}

// killed runs the program on the upper as it was, and kills it before its n-th
// system call that changes something; what the branch shows then must be seen.
// It reports false when the program ended before.
func (s *stage) killed(n int, seen []string, args ...string) bool {
	s.T.Helper()
	s.Sh("rm -rf u w; cp -a was/u was/w .")
	s.plan.Kills(n)
	r := s.Layerfs(args...)
	if s.plan.Disarm() < n {
		require.Zero(s.T, r.Code, r.Stderr)
		return false
	}
	require.Equal(s.T, -1, r.Code, "not killed: %s", r.Stderr)
	require.Equal(s.T, seen, s.seen(), "killed before call %d: %v", n, s.plan.Ops(n))
	return true
}

// fileTimes leaves the times of directories out.
func fileTimes(lines []string) []string {
	var out []string
	for _, l := range lines {
		if before, after, found := strings.Cut(l, " mtime="); found && strings.Contains(before, " 04") {
			_, rest, _ := strings.Cut(after, " ")
			l = before + " " + rest
		}
		out = append(out, l)
	}
	return out
}

func TestConvertRefuses(t *testing.T) {
	s := newStage(t)
	u := s.P("u")
	require.NoError(t, os.WriteFile(s.P("file"), nil, 0644))
	long := strings.Repeat("n", 253)
	require.NoError(t, unix.Mknod(filepath.Join(s.P("l2"), long), unix.S_IFCHR, 0))
	mounted := s.MountOn(s.P("m"), "lowerdir="+s.P("l"))
	for name, c := range map[string]struct {
		code int
		says string
		args []string
	}{
		"no dialect":              {2, "--to", []string{u}},
		"unknown dialect":         {2, "cvs", []string{"--to", "cvs", u}},
		"unknown namespace":       {2, "root", []string{"--to", "aufs", "--namespace", "root", u}},
		"no branch":               {2, "operand", []string{"--to", "aufs"}},
		"two branches":            {2, s.P("l"), []string{"--to", "aufs", u, s.P("l")}},
		"missing":                 {3, s.P("gone"), []string{"--to", "aufs", s.P("gone")}},
		"a file":                  {2, s.P("file"), []string{"--to", "aufs", s.P("file")}},
		"missing work directory":  {3, s.P("gone"), []string{"--to", "aufs", "--workdir", s.P("gone"), u}},
		"name too long for aufs":  {7, long, []string{"--to", "aufs", s.P("l2")}},
		"a lower of a live mount": {4, "layerfs", []string{"--to", "aufs", s.P("l")}},
	} {
		r := s.Layerfs(append([]string{"convert"}, c.args...)...)
		require.Equal(t, c.code, r.Code, "%s: %s", name, r.Stderr)
		require.Contains(t, r.Stderr, c.says, name)
		require.Equal(t, 1, strings.Count(r.Stderr, "\n"), "%s: one line: %q", name, r.Stderr)
		require.Empty(t, r.Stdout, name)
	}
	mounted.Unmount()
}

// What cannot be held is refused before anything is changed: reserved names in
// a union, attributes on a file system without, or of another user.
func TestConvertToWhatIsNotTaken(t *testing.T) {
	s := newStage(t)
	refused := func(dir, says string, args ...string) {
		t.Helper()
		r := s.Layerfs(append([]string{"convert", "--to"}, append(args, dir)...)...)
		require.Equal(t, 7, r.Code, r.Stderr)
		require.Contains(t, r.Stderr, dir)
		require.Contains(t, r.Stderr, says)
		require.Empty(t, s.Sh("find "+dir+" -newermt 2002-02-02 -o -name '.wh..wh.*'"))
	}
	m := s.Mount(s.options("aufs"))
	refused(m.P("c"), "union", "aufs")
	m.Unmount()
	s.Tree("bare", ".wh.a=")
	if harness.Root() {
		require.NoError(t, unix.Mount("none", s.P("bare"), "ramfs", 0, ""))
		defer unix.Unmount(s.P("bare"), 0)
		s.Tree("bare", ".wh.a=")
	}
	s.Sh("touch -d 2001-01-01 bare/.wh.a bare")
	refused(s.P("bare"), "trusted", "overlay", "--namespace", "trusted")
	refused(s.P("bare"), "convert to aufs", "xattr", "--namespace", "trusted")
	if harness.Root() {
		require.Contains(t, s.ok("convert", "--to", "aufs", s.P("bare")), "to aufs")
	}
}

func TestConvertRefusesLive(t *testing.T) {
	for _, opts := range []string{"lower", "br"} {
		s := newStage(t)
		o := s.options("auto")
		if opts == "br" {
			o = "br=" + s.P("u") + "=rw:" + s.P("l") + "=ro"
		}
		m := s.Mount(o)
		require.NoError(t, os.Remove(m.P("a")))
		for _, args := range [][]string{{"convert", "--to", "xattr"}, {"check", "--repair"}} {
			r := s.Layerfs(append(args, s.P("u"))...)
			require.Equal(t, 4, r.Code, "%s: %s", args, r.Stderr)
			require.Contains(t, r.Stderr, s.P("u"))
		}
		require.Contains(t, s.ok("check", s.P("u")), "in use by", "looking is allowed")
		m.Unmount()
		s.ok("convert", "--to", "xattr", s.P("u"))
	}
}
