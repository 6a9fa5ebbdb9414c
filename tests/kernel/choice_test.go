package kernel

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// Which backend is taken, and what is said about it.
func TestChoice(t *testing.T) {
	for name, c := range map[string]struct {
		prepare, opts, backend, why string
	}{
		"nothing in the way": {"", "", "overlay", "no option"},
		"options of both":    {"", "noatime,nosuid,fsync=volatile,whiteout=overlay,copyup=full,lazytime", "overlay", ""},
		"read-only":          {"", "ro", "overlay", ""},
		"asked for":          {"", "backend=fuse", "fuse", "asked for"},
		"FUSE-only":          {"", "squash_to_root", "fuse", "squash_to_root"},
		"another dialect":    {"", "whiteout=aufs", "fuse", "whiteout=aufs"},
		"udba":               {"", "udba=reval", "fuse", "udba=reval"},
		"foreign whiteouts":  {"l/d/.wh.x=", "", "fuse", ".wh.x"},
		"upper in a lower":   {"", "lowerdir=..", "fuse", "lies inside"},
		"pipe in the upper":  {"u/p|", "", "overlay", ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.Tree(".", c.prepare).Tree("l", "a=1").Tree("l2", "b=2")
			lowers := "lowerdir=" + b.P("l") + ":" + b.P("l2")
			if strings.HasPrefix(c.opts, "lowerdir=") {
				c.opts = "lowerdir=" + b.Dir
			}
			b.done("mount", "-o", b.RW(lowers), "-o", "rw,"+c.opts, b.P("m"))
			require.Equal(t, c.backend, b.status()["backend"], b.status()["why"])
			require.Contains(t, b.status()["why"], c.why)
			b.umount()
		})
	}
	b := newBench(t)
	b.fails(2, "squash_to_root", "mount", "-o", b.RW("backend=overlay,squash_to_root"), b.P("m"))
	b.fails(2, "br=", "mount", "-o", "backend=overlay,br="+b.P("u"), b.P("m"))
	b.fails(2, "auto, fuse or overlay", "mount", "-o", b.RW("backend=aufs"), b.P("m"))
	b.fails(3, "gone", "mount", "-o", b.RW("backend=overlay,lowerdir="+b.P("gone")), b.P("m"))
	b.done("mount", "-o", "br="+b.P("u")+":"+b.P("l"), b.P("m"))
	require.Equal(t, "fuse", b.status()["backend"])
	b.umount()
	b = newBench(t)
	b.done("-o", b.RW("whiteout=overlay"), b.P("m"))
	require.Equal(t, "fuse", b.status()["backend"], "the drop-in")
	r := b.Layerfs("-o", b.RW("whiteout=overlay,backend=overlay,ro"), b.P("l2"))
	require.Zero(t, r.Code)
	require.Contains(t, r.Stderr, "backend=overlay is ignored")
	b.done("umount", b.P("l2"))
}

// An ordinary user outside any namespace cannot mount, but FUSE can.
func TestChoiceOfAnOrdinaryUser(t *testing.T) {
	requireTrusted(t)
	b := newBench(t)
	b.Sh("chown 65534:65534 u w m")
	r := b.Cmd(harness.AsOrdinary, harness.Bin(), "mount", "-o", b.RW("backend=overlay"), b.P("m"))
	require.Equal(t, 7, r.Code, r.Stderr)
	require.Contains(t, r.Stderr, "root")
	r = b.Cmd(harness.AsOrdinary, harness.Bin(), "mount", "-o", b.RW(), b.P("m"))
	require.Zero(t, r.Code, r.Stderr)
	r = b.Cmd(harness.AsOrdinary, harness.Bin(), "status", b.P("m"))
	require.Contains(t, r.Stdout, "root, or a user namespace", "why")
	r = b.Cmd(harness.AsOrdinary, harness.Bin(), "umount", b.P("m"))
	require.Zero(t, r.Code, r.Stderr)
}

// The commands that speak to a live mount, on one without a daemon.
func TestCommands(t *testing.T) {
	b := twoLowers(t)
	b.mount("overlay", b.stack())
	b.write("m/x", "changed")
	require.NoError(t, os.Remove(b.P("m/y")))
	b.write("m/new", "n")
	s := b.status()
	require.Equal(t, "overlay "+namespace(), s["dialect"])
	require.Equal(t, b.P("u"), s["upper"])
	require.EqualValues(t, 3, s["branches"])
	require.Contains(t, b.done("status", b.P("m")), "backend:       overlay")
	require.Equal(t, "C /x\nA /new\nD /y\n", sortedByPath(b.done("changes", b.P("m"))))
	lines := strings.Split(strings.TrimSpace(b.done("branches", b.P("m"))), "\n")
	require.Len(t, lines, 3)
	for i, want := range []string{b.P("u") + "=rw", b.P("l") + "=ro", b.P("l2") + "=ro"} {
		require.Equal(t, want, strings.Fields(lines[i])[1])
	}
	require.Contains(t, b.done("trace", b.P("m"), "c/only"), b.P("l2"))
	require.Contains(t, b.done("trace", b.P("m"), "y"), "whiteout")
	b.done("diff", b.P("m"), "-o", b.P("live.tar"))
	b.fails(7, "backend=fuse", "remount", "-o", "del:"+b.P("l"), b.P("m"))
	f, err := os.Open(b.P("m/x"))
	require.NoError(t, err)
	b.fails(4, b.P("m"), "umount", b.P("m"))
	require.NoError(t, f.Close())
	b.umount()
	b.fails(3, b.P("m"), "umount", b.P("m"))
	b.done("diff", "--upper", b.P("u"), "--lower", b.P("l"), "--lower", b.P("l2"), "-o", b.P("dead.tar"))
	b.Sh("cmp live.tar dead.tar")
	require.Empty(t, harness.Daemons(b.P("m")), "there never was a daemon")
}

func sortedByPath(changes string) string {
	var out strings.Builder
	for _, kind := range []string{"C", "A", "D"} {
		for _, l := range strings.Split(changes, "\n") {
			if strings.HasPrefix(l, kind) {
				out.WriteString(l + "\n")
			}
		}
	}
	return out.String()
}

// One upper has one writer, whichever backend that is.
func TestUpperInUse(t *testing.T) {
	b := newBench(t)
	for first, others := range map[string][]string{"fuse": {"overlay"}, "overlay": {"fuse", "overlay", "auto"}} {
		b.mount(first)
		for _, second := range others { // FUSE after FUSE: tests/badinput_test.go
			b.refused(4, "in use", b.RW("backend="+second))
		}
		b.umount()
		b.mount(first)
		for _, second := range []string{"fuse", "overlay"} {
			b.done("mount", "-o", b.RW("ro,backend="+second), b.P("m2"))
			b.done("umount", b.P("m2"))
		}
		b.umount()
	}
}

// With -f the command stays as long as the mount.
func TestForeground(t *testing.T) {
	b := newBench(t)
	for name, end := range map[string]func(*exec.Cmd){
		"unmounted": func(*exec.Cmd) { b.umount() },
		"SIGTERM":   func(c *exec.Cmd) { require.NoError(t, c.Process.Signal(syscall.SIGTERM)) },
	} {
		cmd := exec.Command(harness.Bin(), "mount", "-f", "-o", b.RW("backend=overlay"), b.P("m"))
		require.NoError(t, cmd.Start())
		require.True(t, harness.Eventually(harness.Moment, func() bool { return harness.Mounted(b.P("m")) }), name)
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			t.Fatalf("%s: it did not stay: %v", name, err)
		case <-time.After(100 * time.Millisecond):
		}
		end(cmd)
		select {
		case err := <-done:
			require.NoError(t, err, name)
		case <-time.After(harness.Moment):
			cmd.Process.Kill()
			t.Fatalf("%s: it stays", name)
		}
		require.False(t, harness.Mounted(b.P("m")), name)
	}
}

func TestManyLowers(t *testing.T) {
	b := newBench(t)
	var lowers []string
	for i := range 500 {
		dir := b.P("lowers", strings.Repeat("long", 20), string(rune('a'+i%26)), filepath.Base(t.TempDir()))
		require.NoError(t, os.MkdirAll(dir, 0755))
		lowers = append(lowers, dir)
	}
	require.NoError(t, os.WriteFile(lowers[499]+"/last", nil, 0644))
	for _, backend := range []string{"overlay", "fuse"} {
		b.mount(backend, "lowerdir="+strings.Join(lowers, ":"))
		require.FileExists(t, b.P("m/last"))
		require.EqualValues(t, 501, b.status()["branches"])
		b.umount()
	}
}

func TestProbe(t *testing.T) {
	b := newBench(t)
	type feature struct {
		Name   string
		OK     bool
		Reason string
	}
	var list []struct {
		feature
		Features []feature
	}
	require.NoError(t, json.Unmarshal([]byte(b.done("probe", "--json", b.Dir)), &list))
	text := b.done("probe", b.Dir)
	ok := map[string]bool{}
	for _, p := range list {
		ok[p.Name] = p.OK
		require.NotEqual(t, p.OK, p.Reason != "", "%s", p.Name)
		for _, f := range p.Features {
			ok[p.Name+" "+f.Name] = f.OK
			require.NotEqual(t, f.OK, f.Reason != "", "%s %s", p.Name, f.Name)
			require.Contains(t, text, "  "+f.Name)
		}
		require.Contains(t, text, p.Name)
	}
	require.True(t, ok["fuse"], "this test has mounted with it")
	require.True(t, ok["overlay"], "and with this")
	require.True(t, ok["overlay 500 lowers"])
	require.Equal(t, trusted(), ok["overlay redirect_dir"])
	require.Equal(t, trusted(), ok["overlay trusted"])
	require.False(t, ok["overlay-rootless trusted"])
	require.Contains(t, ok, "btrfs")
	require.Contains(t, ok, "dm-thin")
	require.Equal(t, []string{"l/", "l2/", "m/", "u/", "w/"}, harness.Names(t, b.Dir), "nothing is left")
	b.fails(3, "gone", "probe", b.P("gone"))
	require.NoError(t, unix.Access(b.Dir, unix.W_OK))
}
