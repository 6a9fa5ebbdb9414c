package nbd

import "io"

const (
	inbufSize = 256 << 10
	// After a payload that went around the buffer the next one likely will
	// too, and what was read of it ahead would have to be copied: then only
	// this much is read.
	shortRead = 4 << 10
)

// inbuf is the receiving side of a connection. Unlike bufio.Reader it hands
// out payloads in place and lets large ones go around it.
type inbuf struct {
	src   io.Reader
	buf   []byte
	r, w  int // buf[r:w] is read but not consumed
	short bool
}

func newInbuf(src io.Reader) *inbuf { return &inbuf{src: src, buf: make([]byte, inbufSize)} }

// buffered returns how many bytes can be had without waiting.
func (b *inbuf) buffered() int { return b.w - b.r }

// peek returns the next n bytes, which stay valid until the next call of any
// other method than skip. The error is io.EOF only if the stream ends before
// the first of them.
func (b *inbuf) peek(n int) ([]byte, error) {
	if b.r == b.w {
		b.r, b.w = 0, 0
	}
	if b.r+n > len(b.buf) {
		b.w = copy(b.buf, b.buf[b.r:b.w])
		b.r = 0
	}
	end := len(b.buf)
	if b.short {
		end = min(end, b.r+max(n, shortRead))
	}
	for b.w-b.r < n {
		m, err := b.src.Read(b.buf[b.w:end])
		b.w += m
		if err != nil && b.w-b.r < n {
			return nil, eof(err, b.w-b.r)
		}
	}
	b.short = false
	return b.buf[b.r : b.r+n], nil
}

// skip consumes n bytes that peek has returned.
func (b *inbuf) skip(n int) { b.r += n }

// next is peek and skip.
func (b *inbuf) next(n int) ([]byte, error) {
	p, err := b.peek(n)
	b.skip(len(p))
	return p, err
}

// read fills p, past the buffer except for what is in it already.
func (b *inbuf) read(p []byte) error {
	n := copy(p, b.buf[b.r:b.w])
	b.r += n
	b.short = true
	m, err := io.ReadFull(b.src, p[n:])
	return eof(err, n+m)
}

// rest returns a new buffer with what is left of this one.
func (b *inbuf) rest() *inbuf {
	n := newInbuf(b.src)
	n.w = copy(n.buf, b.buf[b.r:b.w])
	n.short = b.short
	return n
}

// discard consumes n bytes, received or not.
func (b *inbuf) discard(n int64) error {
	for n > 0 {
		p, err := b.next(int(min(n, inbufSize)))
		if err != nil {
			return eof(err, 1)
		}
		n -= int64(len(p))
	}
	return nil
}

// eof makes an end of the stream after n bytes unexpected.
func eof(err error, n int) error {
	if err == io.EOF && n > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}
