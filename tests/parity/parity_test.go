package parity

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// perHistory is the length of a history.
const perHistory = 5000

// kept is a seed that has failed once.
type kept struct {
	seed  uint64
	story string
}

// What other seeds have found is in tests/stories_test.go: a change of the
// operations makes another history of a seed.
var (
	againstOverlay = []kept{
		{260484101, "fstat of a deleted lower file showed no links where others remained"},
		{260730056, "fchmod of a removed lower directory: ENOENT here, ENOTDIR there"},
		{260730099, "a hard link was refused for a set-user-id bit that a write had cleared"},
		{261558096, "a fifo that overlay shows without links"},
	}
	againstPlain = []kept{
		{260909004, "a write of a user namespace's root cleared set-group-id that does not mean execution"},
		{266289014, "fallocate of a user namespace's root cleared set-user-id, and the kernel did not hear of it"},
		{261164009, "a store to a mapping clears set-user-id when the daemon has no privileges"},
	}
)

func histories(t *testing.T, seeds []kept, play func(t *testing.T, seed uint64, n int)) {
	if s := harness.Setting("LAYERFS_TEST_SEED", 0); s != 0 {
		play(t, uint64(s), harness.Setting("LAYERFS_TEST_OPS", perHistory))
		return
	}
	for _, s := range seeds {
		t.Run(fmt.Sprint(s.seed), func(t *testing.T) { play(t, s.seed, perHistory) })
	}
	first := harness.FirstSeed()
	for i := range uint64(max(1, harness.Setting("LAYERFS_TEST_OPS", 15000)/perHistory)) {
		t.Run(fmt.Sprint(first+i), func(t *testing.T) { play(t, first+i, perHistory) })
		if t.Failed() && os.Getenv("LAYERFS_TEST_GO_ON") == "" {
			return
		}
	}
}

// TestParity: see the package comment.
func TestParity(t *testing.T) {
	harness.RequireRoot(t)
	histories(t, againstOverlay, func(t *testing.T, seed uint64, n int) {
		play(t, seed, n, overlaySide, nil)
	})
}

// TestPlain plays against a plain directory.
func TestPlain(t *testing.T) {
	if !harness.Root() {
		t.Skip("TestInUserNamespace runs it as root of its own")
	}
	histories(t, againstPlain, func(t *testing.T, seed uint64, n int) { play(t, seed, n, nil, nil) })
}

// TestSeveral plays with several writable branches against a plain directory.
func TestSeveral(t *testing.T) {
	if !harness.Root() {
		t.Skip("TestInUserNamespace runs it as root of its own")
	}
	histories(t, againstPlain, func(t *testing.T, seed uint64, n int) { play(t, seed, n, nil, severalSide) })
}

// TestInUserNamespace runs TestPlain and TestSeveral as root of a user namespace, with the ids
// that root may give it or with its own only.
func TestInUserNamespace(t *testing.T) {
	harness.RequireFUSE(t)
	e := harness.New(t)
	attr := &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Credential:  &syscall.Credential{NoSetGroups: true},
	}
	if harness.Root() {
		ids := []syscall.SysProcIDMap{{HostID: 100000, Size: 65536}}
		attr.UidMappings, attr.GidMappings, attr.GidMappingsEnableSetgroups = ids, ids, true
		attr.Credential = &syscall.Credential{}
		require.NoError(t, os.Chown(e.P("m"), 100000, 100000))
	}
	r := e.Cmd(func(c *exec.Cmd) {
		c.SysProcAttr = attr
		c.Env = append(c.Env, "LAYERFS_TEST_DIR="+e.P("m"), "LAYERFS_BIN="+harness.Bin())
	}, "/proc/self/exe", "-test.run", "^(TestPlain|TestSeveral)$", "-test.v")
	require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
	require.Contains(t, r.Stdout, "--- PASS: TestPlain")
	require.Contains(t, r.Stdout, "--- PASS: TestSeveral")
}
