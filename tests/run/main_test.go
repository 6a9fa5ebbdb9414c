package run

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// bench is an environment with a store, from which nothing may be left, and an
// image of a few programs.
type bench struct {
	*harness.Env
}

func newBench(t *testing.T) *bench {
	harness.RequireFUSE(t)
	harness.RequireTool(t, "busybox", "busybox-static")
	e := harness.New(t)
	if !harness.Root() {
		if r := e.Cmd(nil, "unshare", "-Urm", "true"); r.Code != 0 {
			harness.Lacking(t, "user namespaces are not to be had: %s", r.Stderr)
		}
	}
	b := &bench{e}
	busybox, err := exec.LookPath("busybox")
	require.NoError(t, err)
	e.Sh("mkdir -p image/bin; cp " + busybox + " image/bin/busybox; for a in sh cat ls id touch rm sleep stat mkdir mv chmod grep; do ln -s busybox image/bin/$a; done")
	require.NoError(t, os.Chmod(e.P("image"), 0755))
	t.Cleanup(func() {
		require.Empty(t, b.left(), "left in the store")
		require.Empty(t, harness.Daemons("run-holder"), "processes")
	})
	return b
}

// left is what is in the store.
func (b *bench) left() (names []string) {
	entries, _ := os.ReadDir(b.P("store", "runs"))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// run runs `layerfs run` with this store.
func (b *bench) run(args ...string) harness.Result {
	b.T.Helper()
	return b.Layerfs(append([]string{"run", "--root", b.P("store")}, args...)...)
}

// inside runs a shell script, which must succeed, and returns what it says.
func (b *bench) inside(script string, args ...string) string {
	b.T.Helper()
	r := b.run(append(args, "--", "sh", "-ec", script)...)
	require.Zero(b.T, r.Code, "%s\n%s%s", script, r.Stdout, r.Stderr)
	return r.Stdout
}

// onImage are the arguments for a run on the image.
func (b *bench) onImage(more ...string) []string {
	return append([]string{"--lower", b.P("image")}, more...)
}
