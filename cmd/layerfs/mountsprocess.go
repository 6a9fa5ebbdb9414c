package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/control"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// mountsProcess is the command by which the program serves the FUSE mounts of a
// store: one process for all of them, so that a mount costs kilobytes.
const mountsProcess = "mounts-process"

// idleTime is how long the process stays without a mount.
const idleTime = 400 * time.Millisecond

// mountRequest asks for a mount.
type mountRequest struct {
	Options    []string `json:"options"` // as for -o
	Mountpoint string   `json:"mountpoint"`
}

// mountReply is the answer to it. A process that was about to end makes no mount.
type mountReply struct {
	Ending bool `json:"ending,omitempty"`
}

// mountHost is the process: its sessions by mountpoint.
type mountHost struct {
	mu       sync.Mutex
	sessions map[string]*session // protected by mu
	used     time.Time           // when the last request or session ended; protected by mu
	busy     int                 // requests under way; protected by mu
	wg       sync.WaitGroup
}

// mountsSocket is where the process listens that serves mounts in this mount
// namespace. dir is the store's directory for sockets.
func mountsSocket(dir string) string {
	ns, _ := os.Readlink("/proc/self/ns/mnt") // "mnt:[4026531841]"
	return filepath.Join(dir, "mounts-"+strings.Trim(strings.TrimPrefix(ns, "mnt:"), "[]")+".sock")
}

// runMountsProcess serves mounts until there has been none for a while. args[0] is
// the directory of the socket.
func runMountsProcess(args []string) error {
	if len(args) != 1 {
		return errs.New(errs.Usage, "%s is for layerfs itself", mountsProcess)
	}
	closeInherited()
	nameProcess()
	report := os.NewFile(mountsReport, "report")
	debug.SetGCPercent(gcPercent)
	raiseLimit()
	unix.Umask(0)
	signals := catchSignals()

	dir, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := os.Chdir("/"); err != nil {
		return err
	}
	socket := mountsSocket(args[0])
	lock, err := os.OpenFile(socket+".lock", os.O_RDWR|os.O_CREATE, 0600)
	if err != nil {
		return err
	}
	if err := sys.Flock(int(lock.Fd())); err != nil {
		return err // another one has it; whoever started us will find that
	}
	h := &mountHost{sessions: map[string]*session{}, used: time.Now()}
	// The path may be too long for a socket's name.
	l, err := control.ListenAt(filepath.Join(sys.ProcPath(int(dir.Fd())), filepath.Base(socket)), h.answer)
	if err != nil {
		return err
	}
	_, _ = report.Write([]byte("ready"))
	report.Close()
	h.wait(signals)
	l.Close()
	_ = os.Remove(socket + ".lock")
	return nil
}

// wait returns when nothing is mounted any more, or at a signal.
func (h *mountHost) wait(signals chan os.Signal) {
	tick := time.NewTicker(idleTime / 4)
	defer tick.Stop()
	for {
		select {
		case sig := <-signals:
			if sig == unix.SIGUSR1 {
				continue
			}
			h.abandon()
			return
		case <-tick.C:
			if h.idle() {
				return
			}
		}
	}
}

// idle reports whether the process may end. After it has, no mount is accepted.
func (h *mountHost) idle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.sessions)+h.busy > 0 || time.Since(h.used) < idleTime {
		return false
	}
	h.busy = -1
	return true
}

// abandon ends all mounts at once.
func (h *mountHost) abandon() {
	h.mu.Lock()
	for _, s := range h.sessions {
		_ = s.abandon()
	}
	h.mu.Unlock()
	h.wg.Wait()
}

func (h *mountHost) answer(cmd string, args json.RawMessage, _ []*os.File) (any, error) {
	if cmd != "mount" {
		return nil, errs.New(errs.Unsupported, "the mounts' process does not know %q: it is of another version", cmd)
	}
	var req mountRequest
	if err := json.Unmarshal(args, &req); err != nil {
		return nil, errs.New(errs.Usage, "mount: %w", err)
	}
	h.mu.Lock()
	if h.busy < 0 {
		h.mu.Unlock()
		return mountReply{Ending: true}, nil
	}
	h.busy++
	h.mu.Unlock()
	err := h.mount(req)
	h.mu.Lock()
	h.busy--
	h.used = time.Now()
	h.mu.Unlock()
	return mountReply{}, err
}

// mount makes a mount and returns when it is live.
func (h *mountHost) mount(req mountRequest) error {
	s, err := parseOptions(true, req.Options)
	if err != nil {
		return err
	}
	inv := invocation{settings: s, mountpoint: req.Mountpoint}
	live, err := inv.open()
	if err != nil {
		return err
	}
	live.shared = true
	channel := live.listen()
	h.mu.Lock()
	h.sessions[req.Mountpoint] = live
	h.mu.Unlock()
	h.wg.Go(func() {
		err := <-live.ended
		live.conn.Close()
		if e := live.fs.Close(); err == nil {
			err = e
		}
		if err != nil {
			live.log.Print(err)
		}
		if channel != nil { // last: whoever unmounts waits for it
			channel.Close()
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.sessions, req.Mountpoint)
		h.used = time.Now()
	})
	return nil
}
