package harness

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Env is a directory of one test with the places that most tests want: l and
// l2 (lowers), u and w (upper and work directory) and m (mountpoint).
type Env struct {
	T   testing.TB
	Dir string
	env []string // for programs that are run, beyond that of the test
}

// New makes the directory of a test. It is removed at the end.
func New(t testing.TB) *Env {
	t.Helper()
	dir, err := os.MkdirTemp(Base(), "layerfs-test-")
	require.NoError(t, err)
	t.Cleanup(func() {
		// After the mounts' own clean-ups, which were registered later.
		makeRemovable(dir)
		var err error
		// A pool's process that ends now may still write its index.
		Eventually(Moment, func() bool { err = os.RemoveAll(dir); return err == nil })
		if err != nil {
			t.Errorf("the directory of the test is left: %v", err)
		}
	})
	require.NoError(t, os.Chmod(dir, 0755))
	e := &Env{T: t, Dir: dir}
	for _, d := range []string{"l", "l2", "u", "w", "m"} {
		require.NoError(t, os.Mkdir(e.P(d), 0755))
	}
	return e
}

// makeRemovable opens directories that a test has closed to an ordinary user.
func makeRemovable(dir string) {
	if Root() {
		return
	}
	_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(p, 0700)
		}
		return nil
	})
}

// P returns a path in the directory of the test.
func (e *Env) P(elem ...string) string {
	return filepath.Join(append([]string{e.Dir}, elem...)...)
}

// Setenv sets a variable for the programs that are run in the environment.
func (e *Env) Setenv(name, value string) { e.env = append(e.env, name+"="+value) }

// RW are the options of the usual writable mount.
func (e *Env) RW(more ...string) string {
	opts := "lowerdir=" + e.P("l") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w")
	return strings.Join(append([]string{opts}, more...), ",")
}

// Result is the end of a program.
type Result struct {
	Code           int
	Stdout, Stderr string
	Took           time.Duration
}

// runTimeout ends a program that hangs: a failure, but a readable one.
const runTimeout = 300 * time.Second

// Layerfs runs the program in the directory of the test.
func (e *Env) Layerfs(args ...string) Result {
	e.T.Helper()
	return e.Cmd(nil, bin, args...)
}

// Cmd runs any program in the directory of the test. prepare may change it
// first.
func (e *Env) Cmd(prepare func(*exec.Cmd), name string, args ...string) Result {
	e.T.Helper()
	var out, errOut bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = e.Dir, &out, &errOut
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(os.Environ(), e.env...)
	if prepare != nil {
		prepare(cmd)
	}
	start := time.Now()
	require.NoError(e.T, cmd.Start())
	timer := time.AfterFunc(runTimeout, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		require.NoError(e.T, err)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		e.T.Errorf("%s has ended but something it started keeps its output open", name)
	}
	return Result{cmd.ProcessState.ExitCode(), out.String(), errOut.String(), time.Since(start)}
}

// Ordinary is the user as whom root's tests run what an ordinary user does.
const Ordinary = 65534

// AsOrdinary makes a command run as an ordinary user without groups.
func AsOrdinary(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: Ordinary, Gid: Ordinary}}
}

// Sh runs a shell script in the directory of the test and requires that it
// succeeds. It returns its output.
func (e *Env) Sh(script string) string {
	e.T.Helper()
	r := e.Cmd(nil, "sh", "-ec", script)
	require.Zero(e.T, r.Code, "%s\n%s%s", script, r.Stdout, r.Stderr)
	return r.Stdout
}
