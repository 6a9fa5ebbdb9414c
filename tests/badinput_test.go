package tests

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// mountFails runs `layerfs mount` and wants an exit code, one line that names
// what is wrong, and nothing left behind; the same whichever backend would do it.
func mountFails(t *testing.T, e *harness.Env, code int, names string, args ...string) {
	t.Helper()
	for _, backend := range []string{"fuse", "auto"} {
		mountFailsBy(t, e, backend, code, names, args)
	}
}

func mountFailsBy(t *testing.T, e *harness.Env, backend string, code int, names string, args []string) {
	t.Helper()
	r := e.Layerfs(append([]string{"mount", "-o", "backend=" + backend}, args...)...)
	if r.Code == 0 { // it should not be: leave nothing for the others
		e.Layerfs("umount", "--lazy", args[len(args)-1])
	}
	require.Equal(t, code, r.Code, "stderr: %s", r.Stderr)
	require.Contains(t, r.Stderr, names)
	require.Equal(t, 1, strings.Count(strings.TrimRight(r.Stderr, "\n"), "\n")+1, "one line: %q", r.Stderr)
	require.Empty(t, r.Stdout)
	require.False(t, harness.Mounted(e.P("m")), "nothing stays mounted")
	require.Empty(t, harness.Daemons(e.P("m")), "no daemon stays")
}

func TestBadInput(t *testing.T) {
	harness.RequireFUSE(t)
	e := harness.New(t)
	write(t, e.P("file"), "")
	l, u, w, m := e.P("l"), e.P("u"), e.P("w"), e.P("m")
	for name, c := range map[string]struct {
		code  int
		names string
		args  []string
	}{
		"missing branch":               {3, e.P("gone"), []string{"-o", "lowerdir=" + e.P("gone"), m}},
		"missing branch in the middle": {3, e.P("gone"), []string{"-o", "lowerdir=" + l + ":" + e.P("gone") + ":" + e.P("l2"), m}},
		"branch is a file":             {2, e.P("file"), []string{"-o", "lowerdir=" + e.P("file"), m}},
		"missing upper":                {3, e.P("gone"), []string{"-o", "lowerdir=" + l + ",upperdir=" + e.P("gone") + ",workdir=" + w, m}},
		"missing work":                 {3, e.P("gone"), []string{"-o", "lowerdir=" + l + ",upperdir=" + u + ",workdir=" + e.P("gone"), m}},
		"missing br= branch":           {3, e.P("gone"), []string{"-o", "br=" + u + "=rw:" + e.P("gone") + "=ro", m}},
		"missing mountpoint":           {3, e.P("gone"), []string{"-o", "lowerdir=" + l, e.P("gone")}},
		"no mountpoint":                {2, "operand", []string{"-o", "lowerdir=" + l}},
		"two mountpoints":              {2, e.P("l2"), []string{"-o", "lowerdir=" + l, m, e.P("l2")}},
		"no branches":                  {2, "lowerdir", []string{m}},
		"upper without work":           {2, "workdir", []string{"-o", "lowerdir=" + l + ",upperdir=" + u, m}},
		"both forms":                   {2, "br=", []string{"-o", "lowerdir=" + l + ",br=" + u, m}},
		"unknown option":               {2, "did you mean lowerdir", []string{"-o", "lowerdirs=" + l, m}},
		"unknown flag option":          {2, "squash_to_root", []string{"-o", "lowerdir=" + l + ",squash_root", m}},
		"unknown flag":                 {2, "no-such", []string{"--no-such", "-o", "lowerdir=" + l, m}},
		"unknown branch mode":          {2, "rx", []string{"-o", "br=" + u + "=rx", m}},
		"unknown dialect":              {2, "whiteout", []string{"-o", e.RW("whiteout=cvs"), m}},
		"bad number":                   {2, "timeout", []string{"-o", "lowerdir=" + l + ",timeout=x", m}},
		"bad mapping":                  {2, "uidmapping", []string{"-o", "lowerdir=" + l + ",uidmapping=1:2", m}},
		"upper and lower the same":     {2, u, []string{"-o", "lowerdir=" + l + ",upperdir=" + u + ",workdir=" + e.P("u"), m}},
		"work in the upper":            {2, e.P("u/sub"), []string{"-o", "lowerdir=" + l + ",upperdir=" + u + ",workdir=" + e.P("u/sub"), m}},
		"upper in work":                {2, e.P("w/sub"), []string{"-o", "lowerdir=" + l + ",upperdir=" + e.P("w/sub") + ",workdir=" + w, m}},
		"mountpoint in the upper":      {2, e.P("u/sub"), []string{"-o", e.RW(), e.P("u/sub")}},
		"mountpoint in the work":       {2, e.P("w/sub"), []string{"-o", e.RW(), e.P("w/sub")}},
		"branch in the mountpoint":     {2, e.P("m/sub"), []string{"-o", "lowerdir=" + e.P("m/sub"), m}},
		"overlapping writable":         {2, e.P("u/sub"), []string{"-o", "br=" + u + "=rw:" + e.P("u/sub") + "=rw", m}},
		"the same twice, writable":     {2, u, []string{"-o", "br=" + u + "=rw:" + u + "=rw", m}},
		"context without SELinux":      {7, "SELinux", []string{"-o", "lowerdir=" + l + `,context="a:b:c:s0,c1"`, m}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, d := range []string{"u/sub", "w/sub", "m/sub"} {
				require.NoError(t, os.MkdirAll(e.P(d), 0755))
			}
			if strings.Contains(name, "SELinux") && exists("/sys/fs/selinux/enforce") {
				t.Skip("SELinux is there")
			}
			mountFails(t, e, c.code, c.names, c.args...)
		})
	}
}

func TestUnreadableBranch(t *testing.T) {
	harness.RequireFUSE(t)
	if harness.Root() {
		t.Skip("an ordinary user's test: root reads everything")
	}
	e := harness.New(t)
	require.NoError(t, os.Chmod(e.P("l"), 0))
	mountFails(t, e, 1, e.P("l"), "-o", "lowerdir="+e.P("l"), e.P("m"))
	require.NoError(t, os.Chmod(e.P("u"), 0555))
	require.NoError(t, os.Chmod(e.P("l"), 0755))
	mountFails(t, e, 1, e.P("u"), "-o", e.RW(), e.P("m"))
}

func TestWorkOnAnotherFileSystem(t *testing.T) {
	harness.RequireRoot(t)
	harness.RequireFUSE(t)
	e := harness.New(t)
	t.Cleanup(func() { unix.Unmount(e.P("w"), unix.MNT_DETACH) })
	e.Sh("mount -t tmpfs none w")
	mountFails(t, e, 2, "different file systems", "-o", e.RW(), e.P("m"))
	e.Sh("umount w; mkdir u/real; mount --bind l w")
	mountFails(t, e, 2, "different mounts", "-o", e.RW(), e.P("m"))
	require.Empty(t, harness.Names(t, e.P("u", "real")), "nothing is left of the try")
	require.Equal(t, []string{"real/"}, harness.Names(t, e.P("u")))
}

func TestUpperInUse(t *testing.T) {
	harness.RequireFUSE(t)
	e := harness.New(t)
	e.Mount(e.RW())
	require.NoError(t, os.Mkdir(e.P("m2"), 0755))
	r := e.Layerfs("mount", "-o", e.RW("backend=fuse"), e.P("m2"))
	require.Equal(t, 4, r.Code, r.Stderr)
	require.Contains(t, r.Stderr, "in use")
	require.Greater(t, r.Took, 1500*time.Millisecond, "waits for an ending daemon")
	require.Less(t, r.Took, 4*time.Second)
	require.False(t, harness.Mounted(e.P("m2")))
	r = e.Layerfs("mount", "-o", e.RW("ro", "backend=fuse"), e.P("m2"))
	require.Zero(t, r.Code, "a second ro mount is allowed: %s", r.Stderr)
	e.Adopt(e.P("m2"))
}

// A mount right after an unmount waits for the old daemon instead of failing.
func TestUpperFreedWithinTwoSeconds(t *testing.T) {
	e := harness.New(t)
	m := e.Mount(e.RW())
	f, err := os.Create(m.P("f"))
	require.NoError(t, err)
	e.Sh("fusermount3 -uz " + m.Point)
	time.AfterFunc(time.Second, func() { f.Close() })
	m2 := e.Mount(e.RW())
	require.FileExists(t, m2.P("f"))
	m.Died()
}

func TestVolatileMark(t *testing.T) {
	harness.RequireFUSE(t)
	e := harness.New(t)
	mount := func() harness.Result { return e.Layerfs("mount", "-o", e.RW("volatile", "backend=fuse"), e.P("m")) }
	r := mount()
	require.Zero(t, r.Code, r.Stderr)
	e.Adopt(e.P("m"), e.RW()).Unmount()
	require.Zero(t, mount().Code, "a clean end leaves no mark")
	m := e.Adopt(e.P("m"))
	require.NoError(t, unix.Kill(m.Pid, unix.SIGKILL))
	require.True(t, harness.Eventually(2*time.Second, func() bool { return !harness.Alive(m.Pid) }))
	e.Sh("fusermount3 -u " + m.Point)
	m.Died()
	mountFails(t, e, 6, "volatile", "-o", e.RW("volatile"), e.P("m"))
	// The drop-in leaves none and minds none of its own.
	e2 := harness.New(t)
	m = e2.Mount(e2.RW("volatile"))
	require.NoError(t, unix.Kill(m.Pid, unix.SIGKILL))
	require.True(t, harness.Eventually(2*time.Second, func() bool { return !harness.Alive(m.Pid) }))
	e2.Sh("fusermount3 -u " + m.Point)
	m.Died()
	e2.Mount(e2.RW("volatile"))
}

// brokenLower is everything that a hostile or damaged branch may hold.
func brokenLower(t *testing.T, e *harness.Env) {
	t.Helper()
	spec := []string{
		"ok=fine",
		"wrongtype/.wh.dir/x=1",
		".wh.link->nowhere",
		"dirs/.wh..wh..opq/x=1",
		".wh.=",
		".wh..wh.=",
		".wh..wh.plnk/1.2=x",
		"circle1/ @user.overlay.redirect=circle2",
		"circle2/ @user.overlay.redirect=circle1",
		"self/ @user.overlay.redirect=/self",
		"up/ @user.overlay.redirect=/../../../etc",
		"dots/ @user.overlay.redirect=..",
		"slashes/ @user.overlay.redirect=a//b/",
		"nothing/ @user.overlay.redirect=",
		"away/ @user.overlay.redirect=/not/there",
		"long/ @user.overlay.redirect=/" + strings.Repeat("x", 3000),
		"opq/ @user.overlay.opaque=" + strings.Repeat("z", 2000),
		"meta=stub @user.overlay.metacopy=\xff\xff",
		"origin=o @user.overlay.origin=\x00\xfb\xff\xff",
		"over=o @user.containers.override_stat=garbage",
		"lfs=o @user.layerfs.link=\x00\x01 @user.layerfs.ino=zzz",
		"fo/ @user.fuseoverlayfs.opaque=maybe",
		"d/wh%0:0",
		"d/wh2= @user.overlay.whiteout=",
		"dirredirect/.wh..wh..opq=/../../etc",
		"bigopq/.wh..wh..opq=" + strings.Repeat("/x", 5000),
		"\xff\xfe=notutf8",
	}
	e.Tree("l", strings.Join(spec, "\n"))
	write(t, e.P("l", ".wh..wh.layerfs"), "no such dialect")
}

func TestBrokenLower(t *testing.T) {
	for _, top := range []bool{true, false} {
		t.Run(fmt.Sprintf("on top %v", top), func(t *testing.T) {
			e := harness.New(t)
			brokenLower(t, e)
			e.Tree("l2", "ok=below\nlow=1\nup/x=1\nd/wh=1")
			lowers := e.P("l") + ":" + e.P("l2")
			if !top {
				lowers = e.P("l2") + ":" + e.P("l")
			}
			m := e.Mount("lowerdir=" + lowers + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w"))
			for _, name := range harness.Names(t, m.Point) {
				base := name[strings.LastIndex(strings.TrimSuffix(name, "/"), "/")+1:]
				require.False(t, strings.HasPrefix(base, ".wh."), name)
			}
			require.NoDirExists(t, m.P("up", "passwd"), "no redirect leaves the branch")
			require.False(t, exists(m.P("up", "passwd")))
			// It can be changed like any other.
			e.Sh(fmt.Sprintf(`cd %s; find . >/dev/null; for f in *; do if [ -d "$f" ]; then touch "$f/new"; mv "$f" "$f.moved"; else echo x >>"$f"; fi; done; rm -rf ./* ; test -z "$(ls -A)"`, m.Point))
			m = m.Remount("lowerdir=" + lowers + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w"))
			require.Empty(t, harness.Names(t, m.Point))
		})
	}
}

// An upper that was written in one dialect is not written in another by
// accident.
func TestRecordedDialect(t *testing.T) {
	harness.RequireFUSE(t)
	e := harness.New(t).Tree("l", "a=1")
	m := e.Mount(e.RW("whiteout=aufs"))
	require.NoError(t, os.Remove(m.P("a")))
	m.Unmount()
	mountFails(t, e, 6, "aufs", "-o", e.RW("whiteout=overlay"), e.P("m"))
	m = e.Mount(e.RW())
	require.False(t, exists(m.P("a")))
	require.NoError(t, os.Mkdir(m.P("b"), 0755))
	m.Unmount()
	require.FileExists(t, e.P("u", ".wh.a"), "auto goes on in the recorded dialect")
}
