package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// conn is one client. Its fields belong to the reader unless they guard
// themselves; exp, size, structured and status do not change in the
// transmission phase.
type conn struct {
	srv  *Server
	net  net.Conn
	in   *inbuf
	out  *outq
	mem  *budget
	exp  *opened // nil until a name was negotiated
	size uint64  // bytes, as the client was told

	structured bool // replies
	status     bool // base:allocation is selected

	draining atomic.Bool    // read no more requests
	workers  sync.WaitGroup // requests that do not run on the reader
	ended    chan error     // why the last reader stopped
	turn     turn
	reads    pace
	writes   pace
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, net: nc, mem: newBudget(&s.shared), ended: make(chan error, 1)}
	c.turn.conn = c
	c.out = newOutq(nc, c.mem)
	c.in = newInbuf(nc)
	return c
}

// serve runs the connection to its end.
func (c *conn) serve() {
	defer c.net.Close()
	err := c.handshake()
	if err == nil {
		c.transmission()
		err = <-c.ended
	}
	c.workers.Wait()
	// What was answered is to arrive, even at a client that asked to
	// disconnect with requests in flight (proto.md, NBD_CMD_DISC).
	c.out.drain()
	c.net.Close()
	c.mem.end()
	if c.exp != nil {
		c.srv.report(c.srv.registry.release(c.exp))
	}
	if !ordinary(err) {
		c.srv.report(err)
	}
}

// errDone ends a connection as the protocol foresees.
var errDone = errors.New("nbd: done")

// ordinary reports that nobody needs to hear of err: the client went away,
// or was cut off because the server stops.
func ordinary(err error) bool {
	var broken *net.OpError
	return err == errDone || err == io.EOF || err == io.ErrUnexpectedEOF || err == io.ErrClosedPipe ||
		errors.As(err, &broken)
}

// drain makes the reader stop at the next request.
func (c *conn) drain() {
	c.draining.Store(true)
	c.net.SetReadDeadline(time.Now())
}

// transmission reads requests until the client leaves or breaks the
// protocol, or another goroutine goes on with it.
func (c *conn) transmission() {
	if err := c.readRequests(); err != errTaken {
		c.ended <- err
	}
}

// takeOver makes the caller the reader. The one before may be writing from
// its receive buffer, so the new one begins with a buffer of its own.
func (c *conn) takeOver() {
	c.in = c.in.rest()
	c.transmission()
}

func (c *conn) readRequests() error {
	for !c.draining.Load() {
		req, err := c.readHeader()
		if err != nil {
			return err
		}
		if req.cmd == cmdDisc {
			return errDone
		}
		if err := c.serveRequest(req); err != nil {
			return err
		}
	}
	return errDone
}

// readHeader receives the next request but for its payload. Before it waits,
// or lets the payload wait, it sends the replies that are held back.
// Nothing is consumed before that, so that it can be taken over.
func (c *conn) readHeader() (request, error) {
	if err := c.await(requestSize); err != nil {
		return request{}, err
	}
	head, err := c.in.peek(requestSize)
	if err != nil {
		return request{}, err
	}
	req, ok := parseRequest(head)
	if !ok {
		return request{}, fmt.Errorf("nbd: request with magic %#08x", be.Uint32(head))
	}
	if req.cmd == cmdWrite {
		if err := c.await(requestSize + int(req.length)); err != nil {
			return request{}, err
		}
	}
	c.in.skip(requestSize)
	return req, nil
}

// await prepares to wait for n bytes, if it takes waiting.
func (c *conn) await(n int) error {
	if c.in.buffered() >= n || !c.out.pending() {
		return nil
	}
	c.turn.begin(nil)
	c.out.flush()
	return c.endTurn()
}

// serveRequest answers one request or hands it to a worker. An error ends
// the connection.
func (c *conn) serveRequest(req request) error {
	if bad := c.check(&req); bad != nil {
		if req.cmd == cmdWrite {
			if err := c.in.discard(int64(req.length)); err != nil {
				return err
			}
		}
		if !c.admit() {
			return errDone
		}
		return c.hold(c.plainReply(&req, bad).giving(nil))
	}
	switch req.cmd {
	case cmdRead:
		return c.startRead(req)
	case cmdWrite:
		return c.startWrite(req)
	}
	if !c.admit() {
		return errDone
	}
	c.work(func() { c.runOther(&req) })
	return nil
}

// admit waits until the request may be served; false means that the
// connection ends.
func (c *conn) admit() bool { return c.mem.admit(1, 0, c.out.flush) }

// admitBuffer is admit with a buffer for n bytes, or nil. A further buffer
// for the same request counts as 0 requests.
func (c *conn) admitBuffer(requests, n int) *buffer {
	if !c.mem.admit(requests, footprint(n), c.out.flush) {
		return nil
	}
	return getBuffer(n)
}

// release gives back what admitBuffer gave.
func (c *conn) release(requests int, buf *buffer) {
	n := buf.footprint()
	buf.put()
	c.mem.release(requests, n)
}

// work runs f beside the reader.
func (c *conn) work(f func()) { c.workers.Go(f) }

// hold queues a reply of the reader's. It is sent together with the next
// ones, if those are here already.
func (c *conn) hold(r reply) error {
	c.turn.begin(nil)
	return c.holdTurn(r)
}

// holdTurn is hold within a turn, which it ends.
func (c *conn) holdTurn(r reply) error {
	if c.out.add(r) {
		c.out.flush()
	}
	return c.endTurn()
}

// endTurn ends what began with turn.begin. If the turn was taken away the
// caller has nothing more to do.
func (c *conn) endTurn() error {
	if c.turn.end() {
		return nil
	}
	c.out.flush() // the new reader may have looked already
	c.workers.Done()
	return errTaken
}

// finish sends the only reply of a request without payload in its reply, or
// the one that tells its failure.
func (c *conn) finish(req *request, buf *buffer, err error) {
	c.out.put(c.plainReply(req, err).giving(buf))
}

// plainReply is what tells err, or success. Where structured replies were
// negotiated an error is a chunk, which has room for words, and for READ
// nothing else is allowed (proto.md "Structured reply chunk message").
func (c *conn) plainReply(req *request, err error) reply {
	if err == nil {
		return simpleReply(req.cookie, 0)
	}
	code := errorCode(err)
	if code == nbdENOTSUP && req.cmd == cmdWriteZeroes && !req.has(cmdFlagFastZero) {
		code = nbdEIO // proto.md allows ENOTSUP for fast zeroes only
	}
	if c.structured {
		return errorChunk(req.cookie, code, err.Error())
	}
	return simpleReply(req.cookie, code)
}

// quiet reports that this is the client's only request as far as is known.
func (c *conn) quiet() bool { return c.in.buffered() == 0 && c.mem.idle() }
