package tests

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// liveMount is a mount with a change of every kind.
func liveMount(t *testing.T) (*harness.Env, *harness.Mount) {
	t.Helper()
	e := harness.New(t).Tree("l", "a=1\nd/b=2\nd/c=3\nold/x=1").Tree("l2", "e=5\nd/low=6")
	harness.RequireFUSE(t)
	opts := "backend=fuse,lowerdir=" + e.P("l") + ":" + e.P("l2") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w")
	r := e.Layerfs("mount", "-o", opts, e.P("m"))
	require.Zero(t, r.Code, r.Stderr)
	m := e.Adopt(e.P("m"), opts)
	write(t, m.P("a"), "changed")
	write(t, m.P("d/new"), "n")
	require.NoError(t, os.Remove(m.P("d/c")))
	require.NoError(t, os.Rename(m.P("old"), m.P("renamed")))
	return e, m
}

func TestHelpOfEveryCommand(t *testing.T) {
	e := harness.New(t)
	for _, c := range []string{"mount", "umount", "status", "branches", "remount", "trace", "changes", "diff", "apply", "check", "convert", "probe"} {
		r := e.Layerfs(c, "--help")
		require.Zero(t, r.Code, c)
		require.Contains(t, r.Stdout, "Usage: layerfs "+c)
		require.Contains(t, r.Stdout, "Example:", c)
		r = e.Layerfs(c, "--no-such-flag")
		require.Equal(t, 2, r.Code, c)
		require.Contains(t, r.Stderr, "no-such-flag")
	}
	r := e.Layerfs()
	require.NotZero(t, r.Code, "without arguments nothing is mounted")
}

func TestChanges(t *testing.T) {
	e, m := liveMount(t)
	const want = "C /a\nC /d\nD /d/c\nA /d/new\nD /old\nA /renamed\nA /renamed/x\n"
	r := e.Layerfs("changes", m.Point)
	require.Zero(t, r.Code, r.Stderr)
	require.Equal(t, want, r.Stdout)
	m.Unmount()
	r = e.Layerfs("changes", "--upper", e.P("u"), "--lower", e.P("l"), "--lower", e.P("l2"))
	require.Zero(t, r.Code, r.Stderr)
	require.Equal(t, want, r.Stdout, "the same without a mount")
	r = e.Layerfs("changes", "--json", "--upper", e.P("u"), "--lower", e.P("l"), "--lower", e.P("l2"))
	var list []map[string]any
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &list), r.Stdout)
	require.Len(t, list, 7)
	require.Equal(t, 3, e.Layerfs("changes", "--upper", e.P("gone")).Code)
	require.Equal(t, 2, e.Layerfs("changes").Code)
}

func TestBranches(t *testing.T) {
	e, m := liveMount(t)
	r := e.Layerfs("branches", m.Point)
	require.Zero(t, r.Code, r.Stderr)
	lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
	require.Len(t, lines, 3)
	for i, want := range []string{e.P("u") + "=rw", e.P("l") + "=ro", e.P("l2") + "=ro"} {
		f := strings.Fields(lines[i])
		require.Equal(t, []string{string(rune('0' + i)), want}, f[:2], "index, directory and mode, top first")
	}
	var list []struct {
		Index int
		Path  string
		Mode  string
	}
	require.NoError(t, json.Unmarshal([]byte(e.Layerfs("branches", "--json", m.Point).Stdout), &list))
	require.Len(t, list, 3)
	require.Equal(t, e.P("l2"), list[2].Path)
}

func TestStatusCommand(t *testing.T) {
	e, m := liveMount(t)
	r := e.Layerfs("status", "--json", m.Point)
	require.Zero(t, r.Code, r.Stderr)
	var s map[string]any
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &s))
	require.Equal(t, "fuse", s["backend"])
	require.True(t, strings.HasPrefix(s["dialect"].(string), "overlay"))
	require.EqualValues(t, 3, s["branches"])
	require.GreaterOrEqual(t, s["copy_ups"].(float64), 1.0)
	r = e.Layerfs("status", m.Point)
	require.Zero(t, r.Code)
	require.Contains(t, r.Stdout, e.P("u"))
	require.Equal(t, 3, e.Layerfs("status", e.P("l")).Code, "nothing is mounted there")
	require.Equal(t, 3, e.Layerfs("status", e.P("gone")).Code)
}

func TestTrace(t *testing.T) {
	e, m := liveMount(t)
	for path, want := range map[string]string{
		"a":         e.P("u"),
		"e":         e.P("l2"),
		"d/b":       e.P("l"),
		"d/low":     e.P("l2"),
		"d/c":       "whiteout",
		"renamed/x": "redirected to /old",
		"nothing":   "no branch has it",
	} {
		r := e.Layerfs("trace", m.Point, path)
		require.Zero(t, r.Code, r.Stderr)
		require.Contains(t, r.Stdout, want, path)
	}
	require.True(t, json.Valid([]byte(e.Layerfs("trace", "--json", m.Point, "d/b").Stdout)))
}

func TestUmountCommand(t *testing.T) {
	e, m := liveMount(t)
	f, err := os.Open(m.P("a"))
	require.NoError(t, err)
	r := e.Layerfs("umount", m.Point)
	require.Equal(t, 4, r.Code, "busy: %s", r.Stderr)
	require.NoError(t, f.Close())
	require.True(t, harness.Eventually(2*time.Second, func() bool { return e.Layerfs("umount", m.Point).Code == 0 }))
	require.False(t, harness.Alive(m.Pid), "returns when the daemon is gone")
	require.Equal(t, 3, e.Layerfs("umount", m.Point).Code, "nothing mounted")
	require.Equal(t, 3, e.Layerfs("umount", e.P("gone")).Code)
	m.Unmount()
}

func TestUmountOfADeadMount(t *testing.T) {
	e := harness.New(t)
	m := e.Mount(e.RW())
	require.NoError(t, unix.Kill(m.Pid, unix.SIGKILL))
	require.True(t, harness.Eventually(2*time.Second, func() bool { return !harness.Alive(m.Pid) }))
	m.Died()
	r := e.Layerfs("umount", m.Point)
	require.Zero(t, r.Code, r.Stderr)
	require.False(t, harness.Mounted(m.Point))
}

// The channel is the owner's alone.
func TestChannelIsPrivate(t *testing.T) {
	harness.RequireRoot(t)
	e, m := liveMount(t)
	r := e.Cmd(harness.AsOrdinary, harness.Bin(), "status", m.Point)
	require.NotZero(t, r.Code)
	require.NotContains(t, r.Stdout, e.P("u"))
}

// In a user namespace everybody is uid 0: two users must not be in each
// other's way.
func TestChannelInTwoUserNamespaces(t *testing.T) {
	harness.RequireRoot(t)
	harness.RequireFUSE(t)
	for _, uid := range []uint32{harness.Ordinary, harness.Ordinary - 1} {
		e := harness.New(t)
		for _, d := range []string{"u", "w", "m"} {
			require.NoError(t, os.Chown(e.P(d), int(uid), int(uid)))
		}
		as := func(c *exec.Cmd) {
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
			c.Env = []string{"PATH=" + os.Getenv("PATH")}
		}
		if r := e.Cmd(as, "unshare", "-Urm", "true"); r.Code != 0 {
			harness.Lacking(t, "user namespaces are not to be had: %s", r.Stderr)
		}
		r := e.Cmd(as, "unshare", "-Urm", "sh", "-ec", `"$1" mount -o "backend=fuse,$2" "$3"; trap 'umount "$3"' EXIT; "$1" status "$3"`,
			"sh", harness.Bin(), e.RW(), e.P("m"))
		require.Zero(t, r.Code, "user %d: %s", uid, r.Stderr)
		require.Contains(t, r.Stdout, e.P("u"))
	}
}
