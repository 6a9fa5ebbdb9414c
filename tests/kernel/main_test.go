package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

const inside = "LAYERFS_TEST_IN_NAMESPACE"

// TestMain takes an ordinary user into namespaces of his own.
func TestMain(m *testing.M) {
	if harness.Root() || os.Getenv(inside) != "" {
		harness.Main(m)
		return
	}
	cmd := exec.Command("unshare", append([]string{"-Urm", "--", os.Args[0]}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	} else if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// trusted reports whether the records lie in trusted. attributes.
func trusted() bool { return os.Getenv(inside) == "" }

func namespace() string {
	if trusted() {
		return "trusted"
	}
	return "user"
}

// requireTrusted is for tests of what is root's alone.
func requireTrusted(t *testing.T) {
	t.Helper()
	if !trusted() {
		t.Skip("root only: it is tested in the leg that runs as root")
	}
}

// bench is an environment with a mount on m by either backend.
type bench struct {
	*harness.Env
}

func newBench(t *testing.T) *bench {
	harness.RequireFUSE(t)
	e := harness.New(t)
	t.Cleanup(func() {
		for _, m := range []string{"m", "m2"} {
			for harness.Mounted(e.P(m)) {
				if r := e.Layerfs("umount", "--lazy", e.P(m)); r.Code != 0 {
					t.Errorf("unmounting %s: %s", e.P(m), r.Stderr)
					_ = unix.Unmount(e.P(m), unix.MNT_DETACH)
				}
			}
		}
	})
	return &bench{e}
}

// mount mounts on m and requires the backend that was asked for.
func (b *bench) mount(backend string, opts ...string) {
	b.T.Helper()
	b.done("mount", "-o", "backend="+backend, "-o", b.RW(opts...), b.P("m"))
	require.Equal(b.T, backend, b.status()["backend"], b.status()["why"])
}

// done runs the program, which must succeed.
func (b *bench) done(args ...string) string {
	b.T.Helper()
	r := b.Layerfs(args...)
	require.Zero(b.T, r.Code, "layerfs %s: %s", strings.Join(args, " "), r.Stderr)
	return r.Stdout
}

// fails runs the program, which must fail with code and say so.
func (b *bench) fails(code int, says string, args ...string) {
	b.T.Helper()
	r := b.Layerfs(args...)
	require.Equal(b.T, code, r.Code, "layerfs %s: %s", strings.Join(args, " "), r.Stderr)
	require.Contains(b.T, r.Stderr, says)
	require.Equal(b.T, 1, strings.Count(r.Stderr, "\n"), r.Stderr)
}

// refused is a mount on m2 that must fail.
func (b *bench) refused(code int, says, opts string) {
	b.T.Helper()
	require.NoError(b.T, os.MkdirAll(b.P("m2"), 0755))
	b.fails(code, says, "mount", "-o", opts, b.P("m2"))
	require.False(b.T, harness.Mounted(b.P("m2")))
}

func (b *bench) umount() {
	b.T.Helper()
	b.done("umount", b.P("m"))
	require.False(b.T, harness.Mounted(b.P("m")))
}

func (b *bench) status() map[string]any {
	b.T.Helper()
	var s map[string]any
	require.NoError(b.T, json.Unmarshal([]byte(b.done("status", "--json", b.P("m"))), &s))
	return s
}

func (b *bench) write(p, content string) {
	b.T.Helper()
	require.NoError(b.T, os.WriteFile(b.P(p), []byte(content), 0644))
}

func (b *bench) read(p string) string {
	b.T.Helper()
	data, err := os.ReadFile(b.P(p))
	require.NoError(b.T, err)
	return string(data)
}
