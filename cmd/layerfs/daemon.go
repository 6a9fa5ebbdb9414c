package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/control"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/fusedev"
)

const (
	// daemonMark, in the environment, makes the program the daemon's half
	// of a mount. Its value is the descriptor of the pipe to the parent.
	daemonMark = "_LAYERFS_DAEMON"
	daemonPipe = 3

	// answerTime is how long a mount may take to answer after the daemon
	// has called it ready.
	answerTime = 10 * time.Second
)

// verdict is what the daemon tells its parent, once.
type verdict struct {
	Error string     `json:"error,omitempty"`
	Class errs.Class `json:"class,omitempty"`
}

// run makes the mount, in this process or in a daemon.
func (inv *invocation) run() error {
	mountpoint, err := absolute(inv.mountpoint)
	if err != nil {
		return err
	}
	inv.mountpoint = mountpoint
	inv.passWhy()
	return runMount(mountpoint, inv.foreground, inv.serve)
}

// runMount has serve make a mount and handle its requests, in this process
// or in a daemon. serve calls ready when the mount is live.
func runMount(mountpoint string, foreground bool, serve func(ready func()) error) error {
	switch {
	case os.Getenv(daemonMark) != "":
		return beDaemon(serve)
	case foreground:
		return serve(func() {})
	}
	return startDaemon(mountpoint)
}

// startDaemon is the parent's half.
func startDaemon(mountpoint string) error {
	cmd, r, err := spawn()
	if err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	defer r.Close()
	var v verdict
	if err := json.NewDecoder(r).Decode(&v); err != nil {
		return fmt.Errorf("the daemon ended before the mount was ready: %w", diedOf(cmd, err))
	}
	if v.Error != "" {
		cmd.Wait() // it has cleaned up when this returns
		return errs.New(v.Class, "%s", v.Error)
	}
	if err := answers(mountpoint); err != nil {
		_ = fusedev.Unmount(mountpoint, true)
		_ = cmd.Process.Kill()
		return fmt.Errorf("the mount on %s does not answer: %w", mountpoint, err)
	}
	return nil
}

// spawn executes this program again with the same arguments, so that ps
// shows them. Whoever waits for the end of our stdout or stderr, or of any
// other descriptor we inherited, must not have to wait for the daemon.
func spawn() (*exec.Cmd, *os.File, error) {
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("close_range: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        os.Args,
		Env:         append(os.Environ(), fmt.Sprintf("%s=%d", daemonMark, daemonPipe)),
		ExtraFiles:  []*os.File{w},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		r.Close()
		return nil, nil, err
	}
	return cmd, r, nil
}

// diedOf returns why a daemon that said nothing has ended.
func diedOf(cmd *exec.Cmd, read error) error {
	if err := cmd.Wait(); err != nil {
		return err
	}
	if errors.Is(read, io.EOF) {
		return errors.New("it said nothing")
	}
	return read
}

// answers checks that the mount is there and its daemon responds.
func answers(mountpoint string) error {
	result := make(chan error, 1)
	go func() {
		_, err := control.Dev(mountpoint)
		if err == nil {
			_, err = os.Stat(mountpoint)
		}
		result <- err
	}()
	select {
	case err := <-result:
		return err
	case <-time.After(answerTime):
		return errors.New("timed out")
	}
}

// beDaemon is the child's half.
func beDaemon(serve func(ready func()) error) error {
	os.Unsetenv(daemonMark)
	unix.CloseOnExec(daemonPipe)
	pipe := os.NewFile(daemonPipe, "pipe to parent")
	nameProcess()
	told := false
	tell := func(v verdict) {
		if !told {
			told = true
			_ = json.NewEncoder(pipe).Encode(v) // a dead parent need not be told
			pipe.Close()
		}
	}
	err := serve(func() { tell(verdict{}) })
	if err != nil {
		tell(verdict{Error: err.Error(), Class: errs.Of(err)})
	}
	return err
}

// nameProcess undoes that executing /proc/self/exe names the process "exe".
func nameProcess() {
	_ = os.WriteFile("/proc/self/comm", []byte("layerfs"), 0)
}
