package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore/client"
	"github.com/layerfs/layerfs/internal/errs"
)

// poolLauncher is the hidden command that starts pool processes for a mount.
//
// A daemon must not start programs while it serves a mount: a thread of Go's
// that waits in vfork for an exec counts as running, and that exec, or what it
// reads, may need an answer from the mount. So this process is started before
// there is one. It ends with the daemon.
const poolLauncher = "pool-launcher"

// launcherFD is the launcher's end of the socket.
const launcherFD = 3

var background = context.Background()

// launcher is the daemon's side.
type launcher struct {
	mu   sync.Mutex
	sock *net.UnixConn
}

// startLauncher starts the launcher process.
func startLauncher() (*launcher, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "launcher")
	defer theirs.Close()
	ours := os.NewFile(uintptr(fds[0]), "launcher")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{"layerfs", poolLauncher}, Dir: "/",
		ExtraFiles:  []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("starting the launcher of pool processes: %w", err)
	}
	go func() { _ = cmd.Wait() }()
	return &launcher{sock: conn.(*net.UnixConn)}, nil
}

// start is the client.Starter of pool processes, make that of the pool maker.
func (l *launcher) start(name string, report, dir, stderr *os.File) error {
	return l.order(poolProcess, name, report, dir, stderr)
}

func (l *launcher) make(name string, report, dir, stderr *os.File) error {
	return l.order(poolMaker, name, report, dir, stderr)
}

func (l *launcher) order(program, name string, report, dir, stderr *os.File) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	rights := unix.UnixRights(int(report.Fd()), int(dir.Fd()), int(stderr.Fd()))
	if _, _, err := l.sock.WriteMsgUnix([]byte(program+" "+name), rights, nil); err != nil {
		return err
	}
	var buf [4096]byte
	n, err := l.sock.Read(buf[:])
	if err != nil {
		return fmt.Errorf("the launcher of pool processes has gone: %w", err)
	}
	var v verdict
	if err := json.Unmarshal(buf[:n], &v); err != nil {
		return err
	}
	if v.Error != "" {
		return errs.New(v.Class, "%s", v.Error)
	}
	return nil
}

func (l *launcher) Close() { l.sock.Close() }

// runPoolLauncher is the launcher process.
func runPoolLauncher(args []string) error {
	f := os.NewFile(launcherFD, "daemon")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return errs.New(errs.Usage, "%s is for layerfs itself", poolLauncher)
	}
	sock, ok := conn.(*net.UnixConn)
	if !ok {
		return errs.New(errs.Usage, "%s is for layerfs itself", poolLauncher)
	}
	nameProcess()
	closeInherited()
	signal.Ignore(syscall.SIGPIPE, syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM)
	for {
		order, files, err := receiveOrder(sock)
		if err != nil || files == nil {
			return nil // the daemon has ended
		}
		var v verdict
		program, name, _ := strings.Cut(order, " ")
		if err := client.Exec(client.Program(program))(name, files[0], files[1], files[2]); err != nil {
			v = verdict{Error: err.Error(), Class: errs.Of(err)}
		}
		for _, f := range files {
			f.Close()
		}
		answer, _ := json.Marshal(v)
		if _, err := sock.Write(answer); err != nil {
			return nil
		}
	}
}

// receiveOrder reads what pool is to be started, and the descriptors for it.
func receiveOrder(sock *net.UnixConn) (order string, files []*os.File, err error) {
	buf, oob := make([]byte, 2*unix.PathMax), make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := sock.ReadMsgUnix(buf, oob)
	if err != nil || n == 0 {
		return "", nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return "", nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 3 {
		return "", nil, err
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "passed"))
	}
	return string(buf[:n]), files, nil
}
