package server

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// The files of a running pool, beside those of the pool itself.
const (
	SocketName   = "socket"
	LockName     = "lock"
	ClientPrefix = "client-"
	DumpPrefix   = "dump-" // metadata on its way to a client
)

const (
	// linger is how long the process waits for another client. A mount's
	// pool process must be gone half a second after the mount.
	linger = 250 * time.Millisecond
	// returnTime is how long clients of a former process have to come back.
	returnTime = 10 * time.Second
	lockTime   = 15 * time.Second
	closeTime  = 3 * time.Second
)

// server is a running pool process.
type server struct {
	pool *blockstore.Pool
	sock *net.UnixListener
	// settled is closed when all clients of a former process are back.
	settled chan struct{}

	mu      sync.Mutex
	conns   int
	absent  map[string]struct{} // lock files of clients that are not back yet
	quiet   time.Time           // when the last connection ended
	ending  bool
	stopped chan struct{} // closed when the process is told to end
}

// Run serves the pool in dir until it is idle. ready is called once: with
// nil when clients can connect, or with what is in the way.
func Run(dir string, ready func(error)) error {
	s, unlock, err := start(dir)
	ready(err)
	if err != nil || s == nil {
		return err
	}
	defer unlock()
	go s.accept()
	s.awaitIdle()
	_ = os.Remove(SocketName)
	s.sock.Close()
	return s.closePool()
}

// closePool closes the pool, but not for ever: badger repeats without end
// what fails because somebody has removed its directory, or filled the disk.
// By then all is durable in its log.
func (s *server) closePool() error {
	done := make(chan error, 1)
	go func() { done <- s.pool.Close() }()
	select {
	case err := <-done:
		return err
	case <-time.After(closeTime):
		return errs.New(errs.Failed, "the index could not be closed in %s; what is in its log is read again by the next process", closeTime)
	}
}

// start locks and opens the pool. The result is nil without an error when
// another process serves it already.
func start(dir string) (s *server, unlock func(), err error) {
	if err := os.Chdir(dir); err != nil {
		return nil, nil, err
	}
	release, err := Lock(".", answers)
	if err != nil || release == nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	s = &server{settled: make(chan struct{}), stopped: make(chan struct{}), quiet: time.Now()}
	if s.pool, err = blockstore.Open("."); err != nil {
		return nil, nil, err
	}
	if s.sock, err = listen(); err != nil {
		s.pool.Close()
		return nil, nil, err
	}
	removeDumps()
	s.absent = liveClients(".")
	go s.awaitClients()
	return s, release, nil
}

// Lock takes the lock of the pool in dir, waiting for a process that is
// ending. It gives up, with a nil unlock, as soon as served reports that the
// one that has the lock is at work.
func Lock(dir string, served func() bool) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, LockName), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockTime); ; time.Sleep(10 * time.Millisecond) {
		err := sys.Flock(int(f.Fd()))
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK {
			f.Close()
			return nil, err
		}
		if served() {
			f.Close()
			return nil, nil
		}
		if time.Now().After(end) {
			f.Close()
			return nil, errs.New(errs.Busy, "the pool is locked by a process that does not answer: %w", unix.EBUSY)
		}
	}
}

func answers() bool {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: SocketName, Net: "unix"})
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func listen() (*net.UnixListener, error) {
	if err := os.Remove(SocketName); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	sock, err := net.ListenUnix("unix", &net.UnixAddr{Name: SocketName, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("the pool's socket: %w", err)
	}
	if err := os.Chmod(SocketName, 0o600); err != nil {
		sock.Close()
		return nil, err
	}
	return sock, nil
}

// liveClients lists the lock files that somebody holds and removes the others.
func liveClients(dir string) map[string]struct{} {
	live := map[string]struct{}{}
	names, _ := filepath.Glob(filepath.Join(dir, ClientPrefix+"*"))
	for _, name := range names {
		f, err := os.OpenFile(name, os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if sys.Flock(int(f.Fd())) == unix.EWOULDBLOCK {
			live[filepath.Base(name)] = struct{}{}
		} else {
			_ = os.Remove(name)
		}
		f.Close()
	}
	return live
}

// removeDumps removes what clients that died did not.
func removeDumps() {
	names, _ := filepath.Glob(DumpPrefix + "*")
	for _, name := range names {
		_ = os.Remove(name)
	}
}

// awaitClients closes settled when every client of a former process has
// come back or gone, or has taken too long.
func (s *server) awaitClients() {
	defer func() {
		s.mu.Lock()
		clear(s.absent)
		s.mu.Unlock()
		close(s.settled)
	}()
	for end := time.Now().Add(returnTime); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		s.mu.Lock()
		n := len(s.absent)
		s.mu.Unlock()
		if n == 0 {
			return
		}
		live := liveClients(".")
		s.mu.Lock()
		for name := range s.absent {
			if _, ok := live[name]; !ok {
				delete(s.absent, name)
			}
		}
		s.mu.Unlock()
	}
}

// back notes that a client has adopted what it had.
func (s *server) back(lock string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.absent, lock)
}

func (s *server) accept() {
	for {
		sock, err := s.sock.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		if !s.enter() {
			sock.Close()
			continue
		}
		go func() {
			defer s.leave()
			s.serve(sock)
		}()
	}
}

// enter counts a connection, unless the process is about to end: the client
// will start another.
func (s *server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return false
	}
	s.conns++
	return true
}

func (s *server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns--
	s.quiet = time.Now()
}

// awaitIdle returns when the process is not needed any more.
func (s *server) awaitIdle() {
	for {
		select {
		case <-s.stopped:
		case <-time.After(25 * time.Millisecond):
		}
		if s.mayEnd() {
			return
		}
	}
}

// removed reports whether somebody has removed the pool under us, which is
// our working directory. Badger would try to write to it for ever.
func removed() bool {
	_, err := os.Lstat(LockName)
	return os.IsNotExist(err)
}

func (s *server) mayEnd() bool {
	idle := s.pool.Idle()
	s.mu.Lock()
	defer s.mu.Unlock()
	told := removed()
	select {
	case <-s.stopped:
		told = true
	default:
	}
	s.ending = told || s.conns == 0 && idle && len(s.absent) == 0 && time.Since(s.quiet) > linger
	return s.ending
}
