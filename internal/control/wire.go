package control

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

const (
	maxRequest = 64 << 10
	maxReply   = 64 << 20
	deadline   = 10 * time.Second

	// MaxFiles is how many files go with one request: SCM_MAX_FD, about.
	MaxFiles = 250
)

// rights wraps files for sendmsg(2); nil for none.
func rights(files []*os.File) []byte {
	if len(files) == 0 {
		return nil
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	return unix.UnixRights(fds...)
}

// received unwraps what came with a message.
func received(oob []byte) (files []*os.File) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files
}

type request struct {
	Cmd  string          `json:"cmd"`
	Args json.RawMessage `json:"args,omitempty"`
}

type response struct {
	Reply json.RawMessage `json:"reply,omitempty"`
	Error string          `json:"error,omitempty"`
	Class errs.Class      `json:"class,omitempty"`
}

// err restores the daemon's error.
func (r *response) err() error {
	if r.Error == "" {
		return nil
	}
	return errs.New(max(r.Class, errs.Failed), "%s", r.Error)
}

func failed(err error) response {
	return response{Error: err.Error(), Class: errs.Of(err)}
}

// peer returns the credentials of the process at the other end: of the one
// that connected, or of the one that called listen.
func peer(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}

// trusted says whether the peer may be spoken to: it runs as the same user,
// or as root, who could do anything anyway.
func trusted(conn *net.UnixConn, self int) error {
	cred, err := peer(conn)
	if err != nil {
		return fmt.Errorf("control channel: %w", err)
	}
	if int(cred.Uid) != self && cred.Uid != 0 {
		return fmt.Errorf("control channel: user %d may not use the mount of user %d", cred.Uid, self)
	}
	return nil
}
