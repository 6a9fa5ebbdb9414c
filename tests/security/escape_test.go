package security

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// TestEscapeRootReplaced: after the mount a branch is the directory that it
// was, whatever its path leads to now (umoci, CVE-2021-29136).
func TestEscapeRootReplaced(t *testing.T) {
	e := harness.New(t).Tree("l", "f=inside\nd/g=inside").Tree("outside", "f="+secret+"\nd/g="+secret+"\nnew=1")
	e.Mount(e.RW())
	for _, b := range []string{"l", "u", "w"} {
		require.NoError(t, os.Rename(e.P(b), e.P(b+".was")))
		require.NoError(t, os.Symlink(e.P("outside"), e.P(b)))
	}
	before := harness.Dump(t, e.P("outside"), harness.DumpOptions{Times: true})
	e.Sh("test $(cat m/d/g) = inside; echo more >>m/f; rm m/d/g; mkdir m/new; ! test -e m/new/x")
	require.Equal(t, before, harness.Dump(t, e.P("outside"), harness.DumpOptions{Times: true}))
	require.Equal(t, []string{"d/", "f=insidemore\n", "new/"}, names(harness.Names(t, e.P("u.was"))))
	for _, b := range []string{"l", "u", "w"} {
		require.NoError(t, os.Remove(e.P(b)))
		require.NoError(t, os.Rename(e.P(b+".was"), e.P(b)))
	}
}

// names leaves out whiteouts.
func names(lines []string) (out []string) {
	for _, l := range lines {
		if !strings.Contains(l, "%0:0") && !strings.Contains(l, ".wh.") {
			out = append(out, l)
		}
	}
	return out
}

// TestEscapeLinks: links in a branch that lead to files outside, by whatever
// way, are links; nothing that is done to them is done to what they lead to.
func TestEscapeLinks(t *testing.T) {
	e := harness.New(t).Tree("outside", "f="+secret+" !0600")
	for name, target := range map[string]string{
		"absolute": e.P("outside/f"), "up": "../outside/f", "root": "/proc/self/root" + e.P("outside/f"),
		"magic": "/proc/self/fd/3", "exe": "/proc/self/exe", "dir": e.P("outside"), "dirslash": e.P("outside") + "/",
	} {
		require.NoError(t, os.Symlink(target, e.P("l", name)))
		require.NoError(t, os.Symlink(target, e.P("u", "u"+name)))
	}
	before := harness.Dump(t, e.P("outside"), harness.DumpOptions{Times: true})
	m := e.Mount(e.RW())
	entries, err := os.ReadDir(m.Point)
	require.NoError(t, err)
	require.Len(t, entries, 14)
	for _, en := range entries {
		p := m.P(en.Name())
		require.NoError(t, unix.Lchown(p, os.Getuid(), os.Getgid()))
		require.NoError(t, harness.SetTime(p, harness.SomeTime))
		require.NoError(t, os.Link(p, p+".link"))
		require.NoError(t, os.Rename(p, p+".new"))
		require.NoError(t, os.Remove(p+".link"))
		require.NoError(t, os.Mkdir(p, 0700))
		require.NoError(t, os.WriteFile(p+"/f", []byte("in"), 0600))
	}
	require.Equal(t, before, harness.Dump(t, e.P("outside"), harness.DumpOptions{Times: true}))
}

// TestEscapeXdev: what is mounted in a branch is not part of it; it shows as
// an empty directory (fuse-overlayfs #359: a bind mount made it drop another).
func TestEscapeXdev(t *testing.T) {
	harness.RequireRoot(t)
	e := harness.New(t).Tree("l", "d/below=1\nother/x=1").Tree("outside", "f="+secret)
	require.NoError(t, unix.Mount(e.P("outside"), e.P("l/d"), "", unix.MS_BIND, ""))
	defer unix.Unmount(e.P("l/d"), unix.MNT_DETACH)
	before := harness.Dump(t, e.P("outside"), harness.DumpOptions{Times: true})
	m := e.Mount(e.RW())
	e.Sh("test -z \"$(ls -A m/d)\"; ! test -e m/d/f; echo 1 >m/d/f; chmod 700 m/d; test $(cat m/other/x) = 1")
	m.Unmount()
	require.Equal(t, before, harness.Dump(t, e.P("outside"), harness.DumpOptions{Times: true}))
}

// TestEscapeHostileRedirects: an image says where the content of a directory
// is. It must be in the branches below.
func TestEscapeHostileRedirects(t *testing.T) {
	for _, target := range []string{
		"/../outside", "../outside", "/d/../../outside", "/link", "/link/sub", "..", "/", ".", "//l", "/d//e",
		strings.Repeat("/x", 2100), "/" + strings.Repeat("y", 300), "a/b", "\n",
	} {
		e := harness.New(t).Tree("outside", "f="+secret+"\nsub/f="+secret).Tree("l2", "d/in=1\nd/e/f=1")
		require.NoError(t, os.Symlink(e.P("outside"), e.P("l2/link")))
		e.Tree("l", "d/mine=1")
		if err := unix.Setxattr(e.P("l/d"), harness.TrustedNS()+"overlay.redirect", []byte(target), 0); err != nil {
			continue // longer than the file system takes
		}
		m := e.Mount("lowerdir=" + e.P("l") + ":" + e.P("l2") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w"))
		require.NotContains(t, strings.Join(harness.Names(t, m.P("d")), "\n"), "outside", "%q", target)
		e.Sh("test $(cat m/d/mine) = 1; echo 1 >m/d/f; mv m/d m/moved; test $(cat m/moved/f) = 1")
		m.Unmount()
		require.Equal(t, []string{"f=" + secret, "sub/", "sub/f=" + secret}, harness.Names(t, e.P("outside")), "%q", target)
	}
}

// TestWeirdWhiteouts: names in a lower that look like whiteouts of what is no
// name, or of everything. fuse-overlayfs #151: a whiteout at the root hid all
// files of that name.
func TestWeirdWhiteouts(t *testing.T) {
	e := harness.New(t)
	for _, name := range []string{
		".wh.", ".wh..", ".wh...", ".wh..wh.", ".wh..wh..", ".wh..wh..opq.", ".wh..wh.x", ".wh. ", ".wh.\n", ".wh..wh..wh.f",
		".wh." + strings.Repeat("n", 251), ".WH.f", "x.wh.f", ".wh..wh..plnk", ".wh.d",
	} {
		require.NoError(t, os.WriteFile(e.P("l", name), nil, 0644), "%q", name)
	}
	e.Tree("l", "f=1\nsub/").Tree("l2", "f=2\nd/x=1\nsub/d/x=1\nsub/f=3")
	m := e.Mount("lowerdir=" + e.P("l") + ":" + e.P("l2") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w"))
	require.Equal(t, []string{".WH.f=", "f=1", "sub/", "sub/d/", "sub/d/x=1", "sub/f=3", "x.wh.f="}, harness.Names(t, m.Point))
	e.Sh("mkdir m/d; rm -r m/sub; rm m/f; test -z \"$(ls m/d)\"")
	m = m.Remount("lowerdir=" + e.P("l") + ":" + e.P("l2") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w"))
	require.Equal(t, []string{".WH.f=", "d/", "x.wh.f="}, harness.Names(t, m.Point))
}
