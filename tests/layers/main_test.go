package layers

import (
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

func TestMain(m *testing.M) {
	syscall.Umask(022)
	harness.Main(m)
}

// diff writes the layer of what args name to the file out in the environment.
func diff(e *harness.Env, out string, args ...string) string {
	e.T.Helper()
	r := e.Layerfs(append([]string{"diff", "-o", e.P(out)}, args...)...)
	require.Zero(e.T, r.Code, r.Stderr)
	return e.P(out)
}

// applied unpacks a layer into the fresh directory to.
func applied(e *harness.Env, to, layer, dialect string) string {
	e.T.Helper()
	r := e.Layerfs("apply", "--to", e.P(to), "--whiteout", dialect, layer)
	require.Zero(e.T, r.Code, r.Stderr)
	require.Empty(e.T, r.Stderr)
	return e.P(to)
}

// sameBytes requires that two layers are the same.
func sameBytes(t *testing.T, want, got, when string) {
	t.Helper()
	a, err := os.ReadFile(want)
	require.NoError(t, err)
	b, err := os.ReadFile(got)
	require.NoError(t, err)
	if string(a) != string(b) {
		require.Equal(t, lines(t, want), lines(t, got), when)
		t.Fatalf("%s: the layers differ", when)
	}
}
