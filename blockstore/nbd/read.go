package nbd

import (
	"bytes"
	"fmt"
	"io"
	"time"
)

// startRead runs a short read here and gives a long one to a worker.
func (c *conn) startRead(req request) error {
	n, size := int(req.length), c.readBuffer(&req)
	quiet := c.quiet()
	buf := c.admitBuffer(1, size)
	if buf == nil {
		return errDone
	}
	switch {
	case size < n && c.structured:
		c.work(func() { c.readPieces(&req, buf) })
	case size < n:
		c.work(func() { c.readStream(&req, buf) })
	case c.reads.brief(n, quiet):
		err := c.readSince(c.turn.begin(&c.reads), buf.b, req.off)
		return c.holdTurn(c.readReply(&req, buf, err))
	default:
		c.work(func() { c.read(&req, buf) })
	}
	return nil
}

// readBuffer is how much of a READ is read at once: all of it where pieces
// would take an error's answer away, and piece by piece what is long.
func (c *conn) readBuffer(req *request) int {
	n := int(req.length)
	whole := !c.structured || req.has(cmdFlagDF)
	if n <= pieceSize || whole && n <= wholeSize {
		return n
	}
	return pieceSize
}

// read answers a READ that fits into buf.
func (c *conn) read(req *request, buf *buffer) {
	err := c.readAt(buf.b, req.off)
	c.out.put(c.readReply(req, buf, err))
}

// readReply answers a READ whose data, or the error instead, is in buf.
func (c *conn) readReply(req *request, buf *buffer, err error) reply {
	if err != nil {
		return c.plainReply(req, err).giving(buf)
	}
	return c.dataReply(req, req.off, buf.b, chunkDone).giving(buf)
}

func (c *conn) dataReply(req *request, off uint64, data []byte, flags uint16) reply {
	switch {
	case !c.structured:
		r := simpleReply(req.cookie, 0)
		r.data = data
		return r
	case !req.has(cmdFlagDF) && allZero(data):
		return holeChunk(req.cookie, flags, off, len(data))
	}
	return dataChunk(req.cookie, flags, off, data)
}

// readPieces answers a long READ in several chunks through the one buffer.
// The last chunk carries DONE, so that an error can still follow any other.
func (c *conn) readPieces(req *request, buf *buffer) {
	end := req.off + uint64(req.length)
	for off := req.off; ; off += pieceSize {
		buf.b = buf.b[:min(pieceSize, end-off)]
		if err := c.readAt(buf.b, off); err != nil {
			c.finish(req, buf, err)
			return
		}
		if off+pieceSize >= end {
			c.out.put(c.dataReply(req, off, buf.b, chunkDone).giving(buf))
			return
		}
		r := c.dataReply(req, off, buf.b, 0)
		c.out.exclusive(func(w io.Writer) error { return r.writeTo(w) })
	}
}

// readStream answers a READ with a simple reply that is too large for a
// buffer. Once the header is out an error can only be told by hanging up
// (proto.md NBD_CMD_READ, "Simple replies").
func (c *conn) readStream(req *request, buf *buffer) {
	if err := c.readAt(buf.b, req.off); err != nil {
		c.finish(req, buf, err)
		return
	}
	r := c.dataReply(req, req.off, buf.b, 0)
	c.out.exclusive(func(w io.Writer) error {
		if err := r.writeTo(w); err != nil {
			return err
		}
		for done := uint64(len(buf.b)); done < uint64(req.length); done += uint64(len(buf.b)) {
			buf.b = buf.b[:min(pieceSize, uint64(req.length)-done)]
			if err := c.readAt(buf.b, req.off+done); err != nil {
				return err
			}
			if _, err := w.Write(buf.b); err != nil {
				return err
			}
		}
		return nil
	})
	c.release(1, buf)
}

// readAt fills p. An export is as long as it says, so that a short read is
// an error of the store.
func (c *conn) readAt(p []byte, off uint64) error {
	return c.readSince(time.Now(), p, off)
}

func (c *conn) readSince(start time.Time, p []byte, off uint64) error {
	n, err := c.exp.ReadAt(p, int64(off))
	c.reads.sample(len(p), start)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

var zeros [64 << 10]byte

// allZero reports whether p is nothing but zeros. For data that is not, the
// answer nearly always comes from the first look at both ends.
func allZero(p []byte) bool {
	if p[0]|p[len(p)/2]|p[len(p)-1] != 0 {
		return false
	}
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
