package client

import (
	"context"
	"errors"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore/wire"
)

// errGone says that the pool process has gone; the call may be repeated.
var errGone = errors.New("the pool process has gone")

// conn is one connection to a pool process.
type conn struct {
	wire *wire.Conn
	gone chan struct{} // closed when the connection has ended

	instance string // of the pool; set before the connection is used

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]call
	ended   bool
}

// call is a request that waits for its answer.
type call struct {
	answer chan wire.Frame
	// first, unless nil, sees an answer before anybody can know that the
	// connection ended after it.
	first func(body []byte)
}

// newConn starts to receive; other is called, in order, with frames that are
// no answers, and must not wait; ended when the connection has ended.
func newConn(sock *net.UnixConn, other func(*conn, wire.Frame), ended func(*conn)) *conn {
	c := &conn{wire: wire.NewConn(sock), gone: make(chan struct{}), waiting: map[uint64]call{}}
	go func() {
		c.receive(other)
		ended(c)
	}()
	return c
}

func (c *conn) close() { c.wire.Close() }

func (c *conn) receive(other func(*conn, wire.Frame)) {
	defer c.end()
	for {
		f, err := c.wire.Receive()
		if err != nil {
			return
		}
		if f.Kind != wire.Answer && f.Kind != wire.Failure {
			other(c, f)
			continue
		}
		c.mu.Lock()
		w, ok := c.waiting[f.ID]
		delete(c.waiting, f.ID)
		c.mu.Unlock()
		if !ok {
			continue
		}
		if w.first != nil && f.Kind == wire.Answer {
			w.first(f.Body)
		}
		w.answer <- f
	}
}

func (c *conn) end() {
	c.wire.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	close(c.gone)
}

// roundTrip sends a request and returns the body of its answer. When ctx
// ends the request is cancelled, and its answer still awaited: what was
// reserved meanwhile must not get lost.
func (c *conn) roundTrip(ctx context.Context, kind wire.Kind, body []byte) ([]byte, error) {
	return c.roundTripFirst(ctx, kind, body, nil)
}

// roundTripFirst is roundTrip; see call.first.
func (c *conn) roundTripFirst(ctx context.Context, kind wire.Kind, body []byte, first func([]byte)) ([]byte, error) {
	ch := make(chan wire.Frame, 1)
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return nil, errGone
	}
	c.nextID++
	id := c.nextID
	c.waiting[id] = call{ch, first}
	c.mu.Unlock()
	if c.wire.Send(wire.Frame{Kind: kind, ID: id, Body: body}) != nil {
		c.wire.Close()
		<-c.gone
		return nil, errGone
	}
	done := ctx.Done()
	for {
		select {
		case f := <-ch:
			return result(f)
		case <-c.gone:
			select {
			case f := <-ch:
				return result(f)
			default:
				return nil, errGone
			}
		case <-done:
			done = nil
			_ = c.wire.Send(wire.Frame{Kind: wire.Cancel, Body: wire.Words(id)})
		}
	}
}

// alive reports whether the connection has not ended.
func (c *conn) alive() bool {
	select {
	case <-c.gone:
		return false
	default:
		return true
	}
}

func result(f wire.Frame) ([]byte, error) {
	if f.Kind == wire.Failure {
		return nil, wire.DecodeError(f.Body)
	}
	return f.Body, nil
}

var errClosed = errors.Join(errors.New("the pool is not open any more"), unix.ESHUTDOWN)
