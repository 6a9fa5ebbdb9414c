package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// Handler answers a command; the reply must be JSON-able. It may be called
// by several goroutines at once. The files that came with the command are closed
// when it returns.
type Handler func(cmd string, args json.RawMessage, files []*os.File) (any, error)

// Listener is the daemon's end of the channel.
type Listener struct {
	sock   *net.UnixListener
	path   string
	file   os.FileInfo // of the socket
	handle Handler
	active sync.WaitGroup
}

// Listen opens the channel of the mount with the device number dev. A
// socket that a dead daemon left is replaced: the number is ours now.
func Listen(dev uint64, h Handler) (*Listener, error) {
	var tried []error
	for _, dir := range directories() {
		l, err := listenIn(dir, dev, h)
		if err == nil {
			return l, nil
		}
		tried = append(tried, err)
	}
	return nil, fmt.Errorf("control channel: %w", errors.Join(tried...))
}

func listenIn(dir string, dev uint64, h Handler) (*Listener, error) {
	if err := usable(dir); err != nil {
		return nil, err
	}
	return ListenAt(filepath.Join(dir, socketName(dev)), h)
}

// ListenAt opens a channel at a path of its own, in a directory that only its owner
// can enter. A socket that is there is replaced.
func ListenAt(path string, h Handler) (*Listener, error) {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	sock, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	err = os.Chmod(path, 0o600)
	l := &Listener{sock: sock, path: path, handle: h}
	if err == nil {
		l.file, err = os.Lstat(path)
	}
	if err != nil {
		sock.Close()
		return nil, err
	}
	sock.SetUnlinkOnClose(false)
	go l.accept()
	return l, nil
}

// Path is where the socket lies.
func (l *Listener) Path() string { return l.path }

// Close removes the socket and waits for the answers that are being given.
func (l *Listener) Close() error {
	err := l.sock.Close()
	// The kernel gives the number of a mount that is gone to the next one, whose
	// daemon may have put its socket in the place of this one already.
	if now, e := os.Lstat(l.path); e == nil && os.SameFile(now, l.file) {
		_ = os.Remove(l.path)
	}
	done := make(chan struct{})
	go func() {
		l.active.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(100 * time.Millisecond): // the daemon has to end soon
	}
	return err
}

func (l *Listener) accept() {
	for {
		conn, err := l.sock.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		l.active.Go(func() { l.serve(conn) })
	}
}

// serve handles one connection. Strangers get no answer at all.
func (l *Listener) serve(conn *net.UnixConn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(deadline))
	if trusted(conn, os.Geteuid()) != nil {
		return
	}
	answer := l.answer(conn)
	data, err := json.Marshal(answer)
	if err != nil {
		data, _ = json.Marshal(failed(err))
	}
	conn.Write(append(data, '\n'))
}

func (l *Listener) answer(conn *net.UnixConn) (answer response) {
	data, oob := make([]byte, maxRequest), make([]byte, unix.CmsgSpace(4*MaxFiles))
	n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
	files := received(oob[:oobn])
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	var req request
	if err == nil {
		rest := io.LimitReader(conn, int64(maxRequest-n))
		err = json.NewDecoder(io.MultiReader(bytes.NewReader(data[:n]), rest)).Decode(&req)
	}
	if err != nil {
		return failed(errs.New(errs.Usage, "control channel: bad request: %w", err))
	}
	defer func() {
		if p := recover(); p != nil {
			answer = failed(fmt.Errorf("%s: internal error: %v", req.Cmd, p))
		}
	}()
	reply, err := l.handle(req.Cmd, req.Args, files)
	if err != nil {
		return failed(err)
	}
	data, err = json.Marshal(reply)
	if err != nil {
		return failed(err)
	}
	return response{Reply: data}
}
