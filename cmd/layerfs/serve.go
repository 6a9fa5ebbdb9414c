package main

import (
	"encoding/json"
	"io"
	"log"
	"os"
	"os/signal"
	"runtime/debug"
	"runtime/pprof"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/fs"
	"github.com/layerfs/layerfs/internal/control"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/fusedev"
)

const (
	// With little live memory the collector would run every few thousand
	// requests; nodes of a large tree make up most of what is live.
	gcPercent = 200

	// abandonTime is how long a signal waits for the lazy unmount to end
	// the connection. Open files would keep it for ever.
	abandonTime = 200 * time.Millisecond
)

// session is a live mount.
type session struct {
	mountpoint string
	launcher   *launcher // nil when no pool will be needed
	why        string    // this backend
	fs         *fs.FS
	conn       *fusedev.Conn
	log        *log.Logger
	ended      chan error // what the request loop returned
	shared     bool       // the process serves other mounts too
}

// serve mounts, calls ready and handles requests until the unmount.
func (inv *invocation) serve(ready func()) error {
	debug.SetGCPercent(gcPercent)
	raiseLimit()
	defer profile(os.Getenv("LAYERFS_CPUPROFILE"))()
	signals := catchSignals() // from here on a signal leaves nothing behind

	s, err := inv.open()
	if err != nil {
		return err
	}
	// The branches are open and the mountpoint is absolute: nothing needs
	// these any more, and they would pin or change what is made.
	unix.Umask(0)
	if err := os.Chdir("/"); err != nil {
		s.log.Print(err)
	}
	channel := s.listen()
	if inv.settleAt == "idle" {
		go s.fs.SettleWhenIdle()
	}
	ready()
	err = s.wait(signals)
	if channel != nil {
		channel.Close()
	}
	s.conn.Close()
	if inv.settleAt == "umount" {
		s.fs.Settle(true)
	}
	if closeErr := s.fs.Close(); err == nil {
		err = closeErr
	}
	if s.launcher != nil {
		s.launcher.Close()
	}
	return err
}

// open opens the branches, mounts and starts the request loop.
func (inv *invocation) open() (*session, error) {
	logger := log.New(io.Discard, "", 0)
	if inv.foreground {
		logger = log.New(os.Stderr, "layerfs: ", log.LstdFlags|log.Lmsgprefix)
	}
	stack, err := branches.Open(inv.stack(inv.mountpoint))
	if err != nil {
		return nil, err
	}
	opts := inv.fileSystem()
	opts.Log = logger
	launch, err := inv.preparePools(stack, &opts)
	if err != nil {
		stack.Close()
		return nil, err
	}
	f, err := fs.New(stack, opts)
	if err != nil {
		stack.Close()
		return nil, err
	}
	fuseOpts := f.FuseOptions()
	fuseOpts.Debug = inv.debug
	conn, err := fusedev.Mount(inv.mount(inv.mountpoint, fuseOpts.MaxWrite))
	if err != nil {
		f.Close()
		return nil, err
	}
	f.SetNotifier(conn)
	f.SetBackings(conn)
	conn.Gate = f
	s := &session{mountpoint: inv.mountpoint, launcher: launch, why: inv.why, fs: f, conn: conn, log: logger, ended: make(chan error, 1)}
	go func() { s.ended <- conn.Serve(f, fuseOpts) }()
	return s, nil
}

// listen opens the channel for status and the like. A mount without one
// works as well.
func (s *session) listen() *control.Listener {
	dev, err := control.Dev(s.mountpoint)
	if err != nil {
		s.log.Print(err)
		return nil
	}
	l, err := control.Listen(dev, s.answer)
	if err != nil {
		s.log.Print(err)
		return nil
	}
	return l
}

// answer carries out a command from the control channel.
func (s *session) answer(cmd string, args json.RawMessage, files []*os.File) (any, error) {
	switch cmd {
	case "shared":
		return s.shared, nil
	case "status":
		status := s.fs.Status()
		status.Why = s.why
		return status, nil
	case "branches":
		return s.fs.Branches(), nil
	case "trace":
		var path string
		if err := json.Unmarshal(args, &path); err != nil {
			return nil, errs.New(errs.Usage, "trace: %w", err)
		}
		return s.fs.Trace(path)
	case "settle":
		s.fs.StartSettle()
		return nil, nil
	case "settle status":
		return s.fs.SettleStatus(), nil
	case "remembered", "change":
		changes, err := changesFrom(args, files)
		if err != nil {
			return nil, err
		}
		if cmd == "remembered" {
			return s.fs.Remembered(changes)
		}
		return s.change(changes)
	}
	return nil, errs.New(errs.Unsupported, "the daemon does not know %q: it is of another version", cmd)
}

func catchSignals() chan os.Signal {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1)
	signal.Ignore(syscall.SIGPIPE)
	return signals
}

// wait returns when the mount has ended, by itself or by a signal.
func (s *session) wait(signals chan os.Signal) error {
	for {
		select {
		case err := <-s.ended:
			return err
		case sig := <-signals:
			if sig == syscall.SIGUSR1 {
				s.log.Printf("%d nodes", s.fs.Status().Nodes)
				continue
			}
			return s.abandon()
		}
	}
}

// abandon unmounts at once; files that are still open are lost.
func (s *session) abandon() error {
	if err := fusedev.Unmount(s.mountpoint, true); err != nil && errs.Of(err) != errs.NotFound {
		return err
	}
	select {
	case err := <-s.ended:
		return err
	case <-time.After(abandonTime):
		return nil
	}
}

// profile writes a CPU profile of the daemon to the file path (make profile), until
// the function that it returns is called; an empty path is for none.
func profile(path string) (stop func()) {
	if path == "" {
		return func() {}
	}
	f, err := os.Create(path)
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		log.Printf("layerfs: no profile: %v", err)
		return func() {}
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}
}

// raiseLimit allows as many open files as the system lets us have: each
// open file of the mount is one of ours.
func raiseLimit() {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil {
		l.Cur = l.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l) // as many as there are, then
	}
}
