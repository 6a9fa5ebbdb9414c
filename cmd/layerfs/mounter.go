package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/control"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/fusedev"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/driver/stacked"
)

// mountsReport is the descriptor on which the mounts' process says that it is ready.
const mountsReport = 3

// unionMounter makes the FUSE mounts of a store.
type unionMounter struct{ run string } // the store's directory for sockets

// Mount implements stacked.Mounter: it has the mounts' process do it, and starts that
// when there is none.
func (m unionMounter) Mount(s stacked.Stack, at string) error {
	dir, err := os.Open(m.run)
	if err != nil {
		return err
	}
	defer dir.Close()
	socket := filepath.Join(sys.ProcPath(int(dir.Fd())), filepath.Base(mountsSocket(m.run)))
	req := mountRequest{Options: []string{unionOptions(s)}, Mountpoint: at}
	if err := m.ask(socket, req); err != nil {
		return err
	}
	if err := answers(at); err != nil {
		_ = fusedev.Unmount(at, true)
		return fmt.Errorf("the mount on %s does not answer: %w", at, err)
	}
	return nil
}

// ask has the mounts' process carry out req, as soon as there is one that does.
func (m unionMounter) ask(socket string, req mountRequest) error {
	for until := time.Now().Add(answerTime); ; time.Sleep(5 * time.Millisecond) {
		var reply mountReply
		err := control.CallAt(socket, "mount", req, &reply)
		absent := errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
		if err == nil && !reply.Ending || err != nil && !absent {
			return err
		}
		if time.Now().After(until) {
			return errs.New(errs.Failed, "the mounts' process cannot be started: %w", err)
		}
		if absent {
			if err := m.start(); err != nil {
				return err
			}
		}
	}
}

// unionOptions are the options of a store's mount: what it writes, the kernel can mount.
func unionOptions(s stacked.Stack) string {
	escape := strings.NewReplacer(`\`, `\\`, ",", `\,`, ":", `\:`)
	var lowers []string
	for _, l := range s.Lowers {
		lowers = append(lowers, escape.Replace(l))
	}
	o := []string{
		"backend=fuse", "whiteout=overlay", "copyup=full",
		"lowerdir=" + strings.Join(lowers, ":"),
		"upperdir=" + escape.Replace(s.Upper), "workdir=" + escape.Replace(s.Work),
	}
	if s.UserXattr {
		o = append(o, "userxattr")
	}
	if s.ReadOnly {
		o = append(o, "ro")
	}
	if s.Volatile {
		o = append(o, "fsync=volatile")
	}
	return strings.Join(o, ",")
}

// start runs a mounts' process and returns when it serves, or when another one does.
func (m unionMounter) start() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", mountsProcess, m.run)
	cmd.Args[0], cmd.Dir = os.Args[0], "/"
	cmd.ExtraFiles = []*os.File{w} // becomes mountsReport
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("starting the mounts' process: %w", err)
	}
	go func() { _ = cmd.Wait() }()
	_, err = io.ReadAll(r)
	return err
}

// Unmount implements stacked.Mounter.
func (m unionMounter) Unmount(at string) error {
	err := unmountFuse(at, false)
	if errs.Of(err) == errs.NotFound { // it has gone by itself
		return nil
	}
	return err
}

// Info implements stacked.Mounter, with what Docker said of aufs.
func (m unionMounter) Info(d *stacked.Driver) []driver.Field {
	return []driver.Field{
		{Name: "Root Dir", Value: d.Home()},
		{Name: "Backing Filesystem", Value: driver.BackingFilesystem(d.Home())},
		{Name: "Dirs", Value: strconv.Itoa(d.Dirs())},
		{Name: "Dirperm1 Supported", Value: "true"},
		{Name: "userxattr", Value: strconv.FormatBool(d.UserXattr())},
	}
}
