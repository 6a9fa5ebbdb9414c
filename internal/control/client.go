package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

const fuseMagic = 0x65735546

// Call has the daemon of a mount carry out cmd. args may be nil; reply is
// what the answer is decoded into, or nil. The files go with the request, in
// their order: MaxFiles at most.
func Call(mountpoint, cmd string, args, reply any, files ...*os.File) error {
	conn, err := dial(mountpoint)
	if err != nil {
		return err
	}
	return ask(conn, "the daemon of "+mountpoint, cmd, args, reply, files)
}

// CallAt is Call on a channel that ListenAt has opened. Where nobody listens, it is
// os.ErrNotExist or ECONNREFUSED.
func CallAt(path, cmd string, args, reply any) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	if err := trusted(conn, os.Geteuid()); err != nil {
		conn.Close()
		return err
	}
	return ask(conn, "the process at "+path, cmd, args, reply, nil)
}

// ask sends one request to whom and reads the answer; conn is closed.
func ask(conn *net.UnixConn, whom, cmd string, args, reply any, files []*os.File) error {
	defer conn.Close()
	if len(files) > MaxFiles {
		return errs.New(errs.Usage, "%s: %d directories at once are too many, %d is the limit", cmd, len(files), MaxFiles)
	}
	data, err := encode(cmd, args)
	if err != nil {
		return err
	}
	conn.SetDeadline(time.Now().Add(deadline))
	if _, _, err := conn.WriteMsgUnix(data, rights(files), nil); err != nil {
		return fmt.Errorf("asking %s: %w", whom, err)
	}
	var answer response
	if err := json.NewDecoder(io.LimitReader(conn, maxReply)).Decode(&answer); err != nil {
		return fmt.Errorf("%s gave no answer: %w", whom, err)
	}
	if err := answer.err(); err != nil {
		return err
	}
	if reply == nil {
		return nil
	}
	return json.Unmarshal(answer.Reply, reply)
}

// Served reports whether the mount with the device number dev still has its channel.
func Served(dev uint64) bool {
	conn, err := dialDev(dev)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

func encode(cmd string, args any) ([]byte, error) {
	req := request{Cmd: cmd}
	if args != nil {
		raw, err := json.Marshal(args)
		if err != nil {
			return nil, err
		}
		req.Args = raw
	}
	data, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	if len(data) >= maxRequest {
		return nil, errs.New(errs.Usage, "%s: the request is larger than %d bytes", cmd, maxRequest)
	}
	return append(data, '\n'), nil
}

// DaemonPID returns the process that serves a mount, as seen from here.
func DaemonPID(mountpoint string) (int, error) {
	conn, err := dial(mountpoint)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	cred, err := peer(conn)
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// Dev returns the device number of the mount at mountpoint, which must be
// FUSE. It asks the kernel only for what it knows, so that it works, and
// does not wait, when the daemon does not answer.
func Dev(mountpoint string) (uint64, error) {
	dev, err := devOf(mountpoint)
	if err != nil {
		return 0, mountError(mountpoint, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(mountpoint, &fs); err != nil {
		return 0, mountError(mountpoint, err)
	}
	if fs.Type != fuseMagic {
		return 0, errs.New(errs.NotFound, "%s is not a layerfs mount", mountpoint)
	}
	return dev, nil
}

func devOf(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return 0, err
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor), nil
}

// Forget removes the sockets that a dead daemon of the mount has left.
func Forget(mountpoint string) {
	dev, err := devOf(mountpoint)
	if err != nil {
		return
	}
	for _, dir := range directories() {
		if safe(dir) != nil {
			continue
		}
		path := filepath.Join(dir, socketName(dev))
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err == nil {
			conn.Close()
		} else if errors.Is(err, unix.ECONNREFUSED) {
			_ = os.Remove(path) // the next mount replaces it otherwise
		}
	}
}

func mountError(mountpoint string, err error) error {
	if err == unix.ENOTCONN || err == unix.ECONNABORTED {
		return dead(mountpoint)
	}
	return fmt.Errorf("%s: %w", mountpoint, err)
}

func dead(mountpoint string) error {
	return errs.New(errs.NotFound, "the daemon of %s is dead: `layerfs umount %s`", mountpoint, mountpoint)
}

func dial(mountpoint string) (*net.UnixConn, error) {
	dev, err := Dev(mountpoint)
	if err != nil {
		return nil, err
	}
	conn, err := dialDev(dev)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return nil, dead(mountpoint)
	case errors.Is(err, os.ErrNotExist):
		return nil, errs.New(errs.NotFound, "%s is not a layerfs mount of this user", mountpoint)
	case err != nil:
		return nil, fmt.Errorf("asking the daemon of %s: %w", mountpoint, err)
	}
	return conn, nil
}

// dialDev tries all places. A refused connection is remembered, but a live
// socket may still lie elsewhere.
func dialDev(dev uint64) (*net.UnixConn, error) {
	var last error = os.ErrNotExist
	for _, dir := range directories() {
		if err := safe(dir); err != nil {
			continue
		}
		path := filepath.Join(dir, socketName(dev))
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err == nil {
			if err = trusted(conn, os.Geteuid()); err == nil {
				return conn, nil
			}
			conn.Close()
		}
		if !errors.Is(err, os.ErrNotExist) {
			last = err
		}
	}
	return nil, last
}
