package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Spec is what is run where. All paths are absolute and, but for those inside,
// without symbolic links.
type Spec struct {
	Keep    string   // what the holder needs while and after the command runs; contains Root
	Root    string   // a mount: the root directory to be
	Volumes []Volume // shown in it
	Hide    []string // directories of the root directory that are to be empty, if they exist
	Command []string // found by PATH in the root directory
	Env     []string
	Dir     string // working directory; "/" where it does not exist
}

// Volume is a file or directory from outside.
type Volume struct {
	Host, Path string // Path is as seen from inside
	ReadOnly   bool
}

// Exit codes of what has not run, as those of `docker run`.
const (
	Failed        = 125
	NotExecutable = 126
	NotFound      = 127
)

// Run executes this program with the argument command as init, which is to
// call Init, and returns its exit code. Names in the root directory on which
// something is to be mounted, and that are missing, exist for that time.
func (s *Spec) Run(command string) (code int, err error) {
	places, err := s.makePlaces()
	defer places.remove()
	if err != nil {
		return Failed, err
	}
	data, err := json.Marshal(s)
	if err != nil {
		return Failed, err
	}
	spec, err := memory(data)
	if err != nil {
		return Failed, err
	}
	defer spec.Close()
	runtime.LockOSThread() // init is to end when the thread that it comes from does
	defer runtime.UnlockOSThread()
	cmd := self(command, os.NewFile(feedFD, "feed"), spec)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return Failed, fmt.Errorf("a pid namespace: %w", err)
	}
	if err := Release(s.Keep); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return Failed, err
	}
	return status(cmd.Wait())
}
