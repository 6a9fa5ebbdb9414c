package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// Descriptors of holder and init.
const (
	feedFD = 3 // the pipe of signals; for the holder at first a byte that says that it has its ids
	specFD = 4 // what it is to do
)

// stageMark, in the environment, tells the holder that it is executed again.
const stageMark = "_LAYERFS_SANDBOX"

// Identity says which ids the user namespace of a caller other than root has
// besides root, who is the caller.
type Identity struct {
	Ranges bool // those that /etc/subuid and /etc/subgid give to the caller
}

// Launch executes this program with the argument command as holder, which gets
// data from Await and keeps files open, and returns its exit code, 128+n after a
// signal.
func Launch(command string, data []byte, id Identity, files ...*os.File) (code int, err error) {
	spec, err := memory(data)
	if err != nil {
		return 0, err
	}
	defer spec.Close()
	r, feed, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer feed.Close()
	cmd := self(command, append([]*os.File{r, spec}, files...)...)
	user := os.Geteuid() != 0
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if user {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
	}
	restore := keepTerminal()
	defer restore()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passed...)
	defer signal.Stop(signals)
	err = cmd.Start()
	r.Close()
	if err != nil {
		return 0, namespaceError(err)
	}
	if user {
		if err := id.give(cmd.Process.Pid); err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return 0, err
		}
	}
	if _, err := feed.Write([]byte{0}); err != nil {
		return 0, err
	}
	go pass(signals, feed)
	return status(cmd.Wait())
}

// self executes this program with the files as descriptors 3 and up, and the terminal.
func self(command string, files ...*os.File) *exec.Cmd {
	return &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{os.Args[0], command}, Env: os.Environ(),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: files,
	}
}

// memory is a file with data, open at its beginning.
func memory(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("layerfs-sandbox", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "specification")
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func namespaceError(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("no user namespace can be had here (%w): see /proc/sys/user/max_user_namespaces and, on Debian and Ubuntu, /proc/sys/kernel/*unprivileged_userns*", err)
	}
	return err
}

// status is the exit code of a process that was waited for.
func status(err error) (int, error) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case !errors.As(err, &exit):
		return 0, err
	}
	if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return exit.ExitCode(), nil
}

// Await is the holder's beginning: it returns, with all capabilities in its
// namespaces, what Launch was given. It must be called before anything else is done.
func Await() ([]byte, error) {
	deaf()
	if os.Getenv(stageMark) == "" {
		var b [1]byte
		if n, err := unix.Read(feedFD, b[:]); n != 1 {
			return nil, fmt.Errorf("the caller has ended: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		env := append(os.Environ(), stageMark+"=1")
		return nil, unix.Exec("/proc/self/exe", os.Args, env)
	}
	os.Unsetenv(stageMark)
	if err := unix.CloseRange(feedFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("close_range: %w", err)
	}
	if err := sys.SeparateMounts(); err != nil {
		return nil, fmt.Errorf("a mount namespace: %w", err)
	}
	return io.ReadAll(os.NewFile(specFD, "specification"))
}
