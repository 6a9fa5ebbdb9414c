package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore/server"
	"github.com/layerfs/layerfs/blockstore/wire"
	"github.com/layerfs/layerfs/internal/errs"
)

// Starter starts a pool process: report and dir are to be its descriptors
// reportFD and poolFD, stderr its standard error; name is what dir is called.
type Starter func(name string, report, dir, stderr *os.File) error

// Exec starts pool processes from this one. program is an argument vector to
// which the name of the directory is appended.
func Exec(program []string) Starter {
	return func(name string, report, dir, stderr *os.File) error {
		cmd := exec.Command(program[0], append(program[1:len(program):len(program)], name)...)
		cmd.Dir = "/"
		cmd.ExtraFiles = []*os.File{report, dir}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		cmd.Stderr = stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		go func() { _ = cmd.Wait() }() // it says what it has to say through the pipe
		return nil
	}
}

// launcher starts pool processes.
type launcher struct{ start Starter }

const (
	// reportFD is where a pool process says that it is ready, with an empty
	// report, or what is wrong, as wire.EncodeError does.
	reportFD = 3
	// poolFD is the directory of the pool.
	poolFD = 4
)

// PoolDir is the directory of the pool that this pool process is for.
func PoolDir() string { return fmt.Sprintf("/proc/self/fd/%d", poolFD) }

// Run has start run a program, and returns when that has reported.
func Run(start Starter, dir *os.File, name string) error { return launcher{start}.run(dir, name) }

// run starts the pool process of dir and returns when it serves.
func (l launcher) run(dir *os.File, name string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		w.Close()
		return err
	}
	defer errR.Close()
	err = l.start(name, w, dir, errW)
	w.Close()
	errW.Close()
	if err != nil {
		return fmt.Errorf("starting the pool process: %w", err)
	}
	report, err := io.ReadAll(r)
	if err == nil && len(report) == 1 {
		return nil
	}
	var stderr bytes.Buffer
	_, _ = io.Copy(&stderr, io.LimitReader(errR, 64<<10))
	if len(report) > 1 {
		return wire.DecodeError(report)
	}
	return errs.New(errs.Corrupt, "%w %s (`layerfs pool check` may tell more): %s", errDied, name, firstLine(stderr.String()))
}

// errDied is a pool process that ended before it could say anything: it was
// killed, or the index is so damaged that badger panics.
var errDied = errors.New("the pool process died while it opened")

// deaths is how many of them are enough.
const deaths = 5

// Report is what the pool process calls to tell its launcher how it went.
func Report(err error) {
	f := os.NewFile(reportFD, "report")
	if f == nil {
		return
	}
	if err != nil {
		_, _ = f.Write(wire.EncodeError(err))
	} else {
		_, _ = f.Write([]byte{'\n'})
	}
	f.Close()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// dial connects to the process of the pool that dir is the directory of, by
// way of /proc, because the path may be longer than a socket's name.
func dial(dir *os.File) (*net.UnixConn, error) {
	name := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), server.SocketName)
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: name, Net: "unix"})
}

// reach returns a connection on which the greeting has passed, and the
// descriptor that came with it. It gives up when closed says that nobody
// wants it any more.
func (l launcher) reach(dir *os.File, name string, closed func() bool) (*net.UnixConn, int, error) {
	var last error
	died := 0
	for try := range 20 {
		if closed() {
			return nil, -1, errClosed
		}
		sock, err := dial(dir)
		if err == nil {
			var fd int
			if fd, err = wire.Greeted(sock); err == nil {
				return sock, fd, nil
			}
			sock.Close()
			if errs.Of(err) == errs.Busy {
				return nil, -1, err
			}
		}
		last = err
		absent := errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
		if !absent {
			// It was about to end.
			time.Sleep(time.Duration(try+1) * 5 * time.Millisecond)
			continue
		}
		if err := l.run(dir, name); errors.Is(err, errDied) && died < deaths {
			died++
		} else if err != nil {
			return nil, -1, err
		}
	}
	return nil, -1, fmt.Errorf("pool %s: its process cannot be reached: %w", name, last)
}
