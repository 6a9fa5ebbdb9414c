package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	maxConns = 256

	// How long Close waits for running requests, and Shutdown for what it
	// has cut off.
	closeGrace = 5 * time.Second
	cutGrace   = time.Second
)

// Server serves the exports of one store on any number of listeners.
type Server struct {
	// Log, if not nil, hears what no caller learns: broken clients, and
	// exports that fail at the last disconnect. It may be called by several
	// goroutines at once and is not to be changed after the first Serve.
	Log func(error)

	registry *registry
	shared   quota
	patience time.Duration // for handshakes

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	closing   bool
	failures  []error // while closing
	active    sync.WaitGroup
}

// New returns a server of exports.
func New(exports Exports) *Server {
	return &Server{
		registry:  newRegistry(exports),
		shared:    quota{max: sharedLimit},
		patience:  handshakeTimeout,
		listeners: map[net.Listener]struct{}{},
		conns:     map[*conn]struct{}{},
	}
}

// Serve accepts connections from l, which it closes in the end, until
// Shutdown or Close, and returns nil then. It may be called for several
// listeners at once.
func (s *Server) Serve(l net.Listener) error {
	if !s.listen(l) {
		l.Close()
		return nil
	}
	defer s.unlisten(l)
	for {
		nc, err := l.Accept()
		if s.stopped() {
			if err == nil {
				nc.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("nbd: %w", err)
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		s.start(nc)
	}
}

func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.listeners[l] = struct{}{}
	}
	return !s.closing
}

func (s *Server) unlisten(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
	l.Close()
}

func (s *Server) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// start serves a connection, unless there are too many: then the client
// sees it closed at once, rather than waiting for nobody knows how long.
func (s *Server) start(nc net.Conn) {
	c := newConn(s, nc)
	if !s.enter(c) {
		nc.Close()
		return
	}
	go func() {
		defer s.leave(c)
		c.serve()
	}()
}

func (s *Server) enter(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || len(s.conns) >= maxConns {
		return false
	}
	s.conns[c] = struct{}{}
	s.active.Add(1)
	return true
}

func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.active.Done()
}

// report tells an error that has no caller to go to.
func (s *Server) report(err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	if s.closing {
		s.failures = append(s.failures, err)
	}
	s.mu.Unlock()
	if s.Log != nil {
		s.Log(err)
	}
}

// Shutdown stops accepting connections and requests, waits until the
// requests that run are answered, and flushes and closes the exports. When
// ctx ends first the connections are cut off; exports that are busy even
// then stay open until their requests return. The error says what was cut
// off and which exports failed to flush or close.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.drain()
	}
	s.mu.Unlock()

	cut := s.await(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(append([]error{cut}, s.failures...)...)
}

// Close is Shutdown that waits no more than some seconds.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	return s.Shutdown(ctx)
}

// await waits for the connections to end, and helps when ctx does before.
func (s *Server) await(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		s.active.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	n := s.cut()
	select {
	case <-done:
	case <-time.After(cutGrace):
	}
	return fmt.Errorf("nbd: %d connections cut off: %w", n, ctx.Err())
}

// cut closes all connections and returns how many there were.
func (s *Server) cut() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.net.Close()
	}
	return len(s.conns)
}
