package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// defaultPath is where programs are in most root directories.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Init is process 1: it returns the exit code of the command. err is why
// there is none; the code says so then.
func Init() (code int, err error) {
	deaf()
	for _, fd := range []int{feedFD, specFD} {
		unix.CloseOnExec(fd)
	}
	var s Spec
	if err := json.NewDecoder(os.NewFile(specFD, "specification")).Decode(&s); err != nil {
		return Failed, err
	}
	if err := s.setup(); err != nil {
		return Failed, err
	}
	command, code, err := s.start()
	if err != nil {
		return code, err
	}
	go relay(os.NewFile(feedFD, "feed"), command)
	return reap(command)
}

// start starts the command.
func (s *Spec) start() (pid, code int, err error) {
	env := s.environment()
	for _, e := range env {
		if path, ok := strings.CutPrefix(e, "PATH="); ok {
			os.Setenv("PATH", path)
		}
	}
	if s.Dir == "" || os.Chdir(s.Dir) != nil {
		_ = os.Chdir("/")
	}
	path, err := exec.LookPath(s.Command[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return 0, startCode(err), err
	}
	pid, err = syscall.ForkExec(path, s.Command, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 0, startCode(err), fmt.Errorf("%s: %w", s.Command[0], err)
	}
	return pid, 0, nil
}

func startCode(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return NotFound
	}
	return NotExecutable
}

// environment is the caller's, with a PATH that suits other root directories
// too and a HOME that exists.
func (s *Spec) environment() []string {
	path, home := "", "/root"
	var env []string
	for _, e := range s.Env {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case name == "PATH":
			path = value
		case name == "HOME" && isDir(value):
			home = value
		case name != "HOME":
			env = append(env, e)
		}
	}
	dirs := filepath.SplitList(path)
	for _, d := range filepath.SplitList(defaultPath) {
		if !contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return append(env, "PATH="+strings.Join(dirs, ":"), "HOME="+home)
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir() && filepath.IsAbs(path)
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// relay sends the command what arrives in feed. When the caller is gone
// everything ends.
func relay(feed io.Reader, command int) {
	var b [1]byte
	for {
		if _, err := feed.Read(b[:]); err != nil {
			os.Exit(128 + int(syscall.SIGKILL))
		}
		_ = unix.Kill(command, syscall.Signal(b[0]))
	}
}

// reap waits for every process that ends here, until the command does.
func reap(command int) (int, error) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR || pid != command && err == nil:
		case err != nil:
			return Failed, fmt.Errorf("waiting for the command: %w", err)
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		default:
			return ws.ExitStatus(), nil
		}
	}
}
