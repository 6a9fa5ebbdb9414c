package server

import (
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/wire"
	"github.com/layerfs/layerfs/internal/errs"
	"os"
)

// askTime is how long a client has to do what it is asked.
const askTime = 20 * time.Second

// conn is one client.
type conn struct {
	s       *server
	wire    *wire.Conn
	session *blockstore.Session
	ctx     context.Context // ends with the connection
	lock    string          // the client's lock file; set by hello

	mu      sync.Mutex
	running map[uint64]context.CancelFunc // requests that can be cancelled
	asked   map[uint64]chan error         // what the client was asked
	nextAsk uint64
	told    [2]uint64 // what the last Published said
}

// serve talks to one client until it goes. Strangers get no answer at all.
func (s *server) serve(sock *net.UnixConn) {
	defer sock.Close()
	if !trusted(sock) {
		return
	}
	data, err := os.OpenFile("data", os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	err = wire.Greet(sock, int(data.Fd()))
	data.Close()
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &conn{s: s, wire: wire.NewConn(sock), ctx: ctx, running: map[uint64]context.CancelFunc{}, asked: map[uint64]chan error{}}
	c.session = s.pool.NewSession(c)
	var work sync.WaitGroup
	go c.publish()
	for {
		f, err := c.wire.Receive()
		if err != nil {
			break
		}
		c.dispatch(f, &work)
	}
	cancel()
	c.failAsked()
	work.Wait()
	c.session.Close()
}

// trusted says whether the peer is the pool's user, or root.
func trusted(sock *net.UnixConn) bool {
	raw, err := sock.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		ok = err == nil && (int(cred.Uid) == os.Geteuid() || cred.Uid == 0)
	})
	return err == nil && ok
}

// dispatch answers what takes only the pool's lock at once, in order, and
// the rest beside.
func (c *conn) dispatch(f wire.Frame, work *sync.WaitGroup) {
	switch f.Kind {
	case wire.Done:
		c.answered(f)
	case wire.Cancel:
		c.cancel(f)
	case wire.Leaf, wire.Return, wire.Assign:
		c.answer(f.ID, func() ([]byte, error) { return c.quick(f) })
	default:
		ctx, cancel := context.WithCancel(c.ctx)
		c.mu.Lock()
		c.running[f.ID] = cancel
		c.mu.Unlock()
		work.Go(func() {
			c.answer(f.ID, func() ([]byte, error) { return c.slow(ctx, f) })
			c.mu.Lock()
			delete(c.running, f.ID)
			c.mu.Unlock()
			cancel()
		})
	}
}

func (c *conn) answer(id uint64, run func() ([]byte, error)) {
	body, err := run()
	if err != nil {
		_ = c.wire.Send(wire.Frame{Kind: wire.Failure, ID: id, Body: wire.EncodeError(err)})
		return
	}
	_ = c.wire.Send(wire.Frame{Kind: wire.Answer, ID: id, Body: body}) // a client that went needs none
}

func (c *conn) cancel(f wire.Frame) {
	if w, err := wire.ParseWords(f.Body, 1); err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if stop := c.running[w[0]]; stop != nil {
			stop()
		}
	}
}

// quick carries out requests that wait for nobody.
func (c *conn) quick(f wire.Frame) ([]byte, error) {
	switch f.Kind {
	case wire.Leaf:
		w, err := wire.ParseWords(f.Body, 2)
		if err != nil {
			return nil, badRequest(err)
		}
		m, err := c.session.Leaf(uint32(w[0]), w[1])
		if err != nil {
			return nil, err
		}
		return wire.LeafBody(m), nil
	case wire.Return:
		blocks, err := wire.ParseWords(f.Body, 0)
		if err != nil {
			return nil, badRequest(err)
		}
		c.session.Return(blocks)
		return nil, nil
	default: // Assign
		id, list, err := wire.ParseAssign(f.Body)
		if err != nil {
			return nil, badRequest(err)
		}
		if err := c.session.Assign(id, list); err != nil {
			return nil, err
		}
		return wire.Words(c.session.Seq(id)), nil
	}
}

// slow carries out requests that may wait, for the disk, for space or for
// another client.
func (c *conn) slow(ctx context.Context, f wire.Frame) ([]byte, error) {
	switch f.Kind {
	case wire.Reserve:
		w, err := wire.ParseWords(f.Body, 1)
		if err != nil || w[0] == 0 || w[0] > 1<<16 {
			return nil, badRequest(err)
		}
		if err := c.s.awaitSettled(ctx); err != nil {
			return nil, err
		}
		grants, err := c.session.Reserve(ctx, int(w[0]))
		return wire.GrantBody(grants), err
	case wire.Unmap, wire.SetZero:
		w, err := wire.ParseWords(f.Body, 3)
		if err != nil {
			return nil, badRequest(err)
		}
		run := c.session.Unmap
		if f.Kind == wire.SetZero {
			run = c.session.SetZero
		}
		if err := run(uint32(w[0]), w[1], w[2]); err != nil {
			return nil, err
		}
		return wire.Words(c.session.Seq(uint32(w[0]))), nil
	case wire.SetSize:
		w, err := wire.ParseWords(f.Body, 2)
		if err != nil {
			return nil, badRequest(err)
		}
		if err := c.session.Resize(uint32(w[0]), int64(w[1])); err != nil {
			return nil, err
		}
		return wire.Words(c.session.Seq(uint32(w[0]))), nil
	case wire.Flush:
		id, list, err := wire.ParseAssign(f.Body)
		if err != nil {
			return nil, badRequest(err)
		}
		return nil, c.session.Flush(id, list)
	case wire.Adopt:
		id, list, err := wire.ParseAssign(f.Body)
		if err != nil {
			return nil, badRequest(err)
		}
		return c.adopt(id, list)
	case wire.AdoptBlocks:
		blocks, err := wire.ParseWords(f.Body, 0)
		if err != nil {
			return nil, badRequest(err)
		}
		return nil, c.session.AdoptBlocks(blocks)
	case wire.DataFailed:
		c.s.pool.DataFailed(wire.DecodeError(f.Body))
		return nil, nil
	case wire.Admin:
		return c.admin(ctx, f.Body)
	}
	return nil, errs.New(errs.Usage, "request %d is unknown", f.Kind)
}

func badRequest(err error) error {
	return errs.New(errs.Usage, "a request that cannot be read: %w", err)
}

// adopt assigns again what a former process may have forgotten.
func (c *conn) adopt(id uint32, list []blockstore.Assignment) ([]byte, error) {
	missing, err := c.session.Adopt(id, list)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		if err := c.session.Assign(id, missing); err != nil {
			return nil, err
		}
	}
	return wire.Words(c.session.Seq(id)), nil
}

// awaitSettled waits until blocks may be given away.
func (s *server) awaitSettled(ctx context.Context) error {
	select {
	case <-s.settled:
		return nil
	case <-ctx.Done():
		return unix.EINTR
	}
}

// publish tells the client what became durable and free.
func (c *conn) publish() {
	c.s.pool.Watch(c.ctx, func(durable, freed uint64) {
		c.mu.Lock()
		news := c.told != [2]uint64{durable, freed}
		c.told = [2]uint64{durable, freed}
		c.mu.Unlock()
		if news {
			_ = c.wire.Send(wire.Frame{Kind: wire.Published, Body: wire.Words(durable, freed)})
		}
	})
}

// ask has the client do something and waits until it has.
func (c *conn) ask(kind wire.Kind, body []byte) error {
	done := make(chan error, 1)
	c.mu.Lock()
	c.nextAsk++
	id := c.nextAsk
	c.asked[id] = done
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.asked, id)
		c.mu.Unlock()
	}()
	if c.wire.Send(wire.Frame{Kind: kind, ID: id, Body: body}) != nil {
		return nil // it has gone, and with it what it was promised
	}
	select {
	case err := <-done:
		return err
	case <-c.ctx.Done():
		return nil
	case <-time.After(askTime):
		return errs.New(errs.Busy, "the process that uses it does not answer: %w", unix.EBUSY)
	}
}

func (c *conn) answered(f wire.Frame) {
	c.mu.Lock()
	done := c.asked[f.ID]
	delete(c.asked, f.ID)
	c.mu.Unlock()
	if done == nil {
		return
	}
	if len(f.Body) > 0 {
		done <- wire.DecodeError(f.Body)
	} else {
		done <- nil
	}
}

// failAsked ends all waiting for a client that has gone.
func (c *conn) failAsked() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, done := range c.asked {
		done <- nil
		delete(c.asked, id)
	}
}

// Settle, Drop and GiveBack are blockstore.Owner's.
func (c *conn) Settle(id uint32) error { return c.ask(wire.Settle, wire.Words(uint64(id))) }
func (c *conn) Drop(id uint32)         { _ = c.ask(wire.Drop, wire.Words(uint64(id))) }
func (c *conn) GiveBack()              { _ = c.ask(wire.GiveBack, nil) }
