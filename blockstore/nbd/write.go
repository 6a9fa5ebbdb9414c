package nbd

import (
	"fmt"
	"sync"
	"time"
)

// In the receive buffer a payload up to this size is written from where it
// lies; a larger one is received into a buffer of its own.
const inPlaceSize = 64 << 10

// startWrite receives the payload of a WRITE and writes it, here if that is
// short work.
func (c *conn) startWrite(req request) error {
	switch n := int(req.length); {
	case n > pieceSize:
		return c.writePieces(req)
	case n > inPlaceSize:
		return c.writeWhole(req)
	default:
		return c.writeInPlace(req)
	}
}

func (c *conn) writeInPlace(req request) error {
	n := int(req.length)
	data, err := c.in.peek(n)
	if err != nil {
		return eof(err, 1)
	}
	if !c.writeHere(&req, c.in.buffered() == n) {
		buf := c.admitBuffer(1, n)
		if buf == nil {
			return errDone
		}
		copy(buf.b, data)
		c.in.skip(n)
		c.work(func() { c.write(&req, buf) })
		return nil
	}
	if !c.admit() {
		return errDone
	}
	c.in.skip(n) // data stays until this turn ends, see takeOver
	err = c.writeSince(c.turn.begin(&c.writes), data, req.off)
	return c.holdTurn(c.plainReply(&req, err).giving(nil))
}

// writeHere says whether the reader should write, given that nothing lies in
// the receive buffer behind the request.
func (c *conn) writeHere(req *request, last bool) bool {
	return !req.has(cmdFlagFUA) && c.writes.brief(int(req.length), last && c.mem.idle())
}

func (c *conn) writeWhole(req request) error {
	n := int(req.length)
	here := c.writeHere(&req, c.in.buffered() <= n)
	buf := c.admitBuffer(1, n)
	if buf == nil {
		return errDone
	}
	if err := c.in.read(buf.b); err != nil {
		return eof(err, 1)
	}
	if here {
		err := c.writeSince(c.turn.begin(&c.writes), buf.b, req.off)
		return c.holdTurn(c.plainReply(&req, err).giving(buf))
	}
	c.work(func() { c.write(&req, buf) })
	return nil
}

// write serves a WRITE whose payload is in buf.
func (c *conn) write(req *request, buf *buffer) {
	err := c.writeAt(buf.b, req.off)
	if err == nil {
		err = c.persist(req)
	}
	c.finish(req, buf, err)
}

// writePieces serves a WRITE whose payload is received and written piece by
// piece; the next one is received while those before are written. If the
// client goes away in the middle, what was received is written all the
// same: nobody was told that the old content is still there.
func (c *conn) writePieces(req request) error {
	if !c.admit() {
		return errDone
	}
	w := &pieces{c: c, req: req, left: 1}
	off, end := req.off, req.off+uint64(req.length)
	for off < end {
		n := int(min(end-off, pieceSize))
		buf := c.admitBuffer(0, n)
		if buf == nil {
			return errDone
		}
		if err := c.in.read(buf.b); err != nil {
			return eof(err, 1)
		}
		w.write(buf, off)
		off += uint64(n)
	}
	w.done(nil)
	return nil
}

func (c *conn) writeAt(p []byte, off uint64) error {
	return c.writeSince(time.Now(), p, off)
}

func (c *conn) writeSince(start time.Time, p []byte, off uint64) error {
	_, err := c.exp.WriteAt(p, int64(off))
	c.writes.sample(len(p), start)
	if err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}

// pieces counts the parts of a WRITE that are not written yet, and the
// reader as one of them until all is received.
type pieces struct {
	c   *conn
	req request

	mu   sync.Mutex
	left int
	err  error // the first
}

// write hands one part to a worker.
func (w *pieces) write(buf *buffer, off uint64) {
	w.mu.Lock()
	w.left++
	w.mu.Unlock()
	w.c.work(func() {
		err := w.c.writeAt(buf.b, off)
		w.c.release(0, buf)
		w.done(err)
	})
}

// done counts one part off; the last one answers the request.
func (w *pieces) done(err error) {
	w.mu.Lock()
	if w.err == nil {
		w.err = err
	}
	w.left--
	last := w.left == 0
	w.mu.Unlock()
	if !last {
		return
	}
	if w.err == nil {
		w.err = w.c.persist(&w.req)
	}
	w.c.finish(&w.req, nil, w.err)
}
