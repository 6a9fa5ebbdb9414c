package nbd

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestInbuf(t *testing.T) {
	data := pattern(5*inbufSize + 77)
	for name, src := range map[string]io.Reader{
		"whole": bytes.NewReader(data), "bytes": iotest.OneByteReader(bytes.NewReader(data)),
		"halves": iotest.HalfReader(bytes.NewReader(data)), "eof with data": iotest.DataErrReader(bytes.NewReader(data)),
	} {
		b, pos := newInbuf(src), 0
		for i, n := range []int{28, 1, inbufSize - 10, 28, inbufSize, 5} {
			p, err := b.next(n)
			require.NoError(t, err, name)
			require.True(t, bytes.Equal(data[pos:pos+n], p), "%s: read %d", name, i)
			pos += n
		}
		p := make([]byte, inbufSize+1000)
		require.NoError(t, b.read(p))
		require.True(t, bytes.Equal(data[pos:pos+len(p)], p))
		pos += len(p)
		_, err := b.peek(28)
		require.NoError(t, err)
		if name == "whole" {
			require.Equal(t, shortRead, b.buffered(), "after a payload only little is read ahead")
		}
		b = b.rest()
		p, err = b.next(100)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data[pos:pos+100], p))
		pos += 100
		require.NoError(t, b.discard(int64(len(data)-pos-10)))
		_, err = b.peek(11)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		p, err = b.next(10)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data[len(data)-10:], p))
		_, err = b.peek(1)
		require.ErrorIs(t, err, io.EOF)
		require.ErrorIs(t, b.discard(1), io.ErrUnexpectedEOF)
	}
}

func TestBudget(t *testing.T) {
	shared := &quota{max: 10 << 20}
	a, b := newBudget(shared), newBudget(shared)
	never := func() { t.Helper(); t.Fatal("would wait") }
	take := func(x *budget, n int64) { t.Helper(); require.True(t, x.admit(1, n, never)) }
	take(a, reserveSize)
	require.Zero(t, shared.used.Load(), "the reserve is free")
	take(a, 10<<20)
	require.EqualValues(t, 10<<20, shared.used.Load())
	take(b, reserveSize) // although a has used up the rest

	waited, admitted := make(chan struct{}), make(chan bool)
	go func() { admitted <- b.admit(1, 1, func() { close(waited) }) }()
	<-waited
	a.release(1, 10<<20) // is not what b waits for
	b.release(1, reserveSize)
	require.True(t, <-admitted)
	require.Zero(t, shared.used.Load())

	// What flush gives back is found without waiting.
	require.True(t, a.admit(1, connLimit, func() { shared.max = connLimit; a.release(1, reserveSize) }))
	require.EqualValues(t, connLimit-reserveSize, shared.used.Load())
	go func() { admitted <- a.admit(0, connLimit, func() { go a.close() }) }()
	require.False(t, <-admitted)
	a.end()
	require.Zero(t, shared.used.Load())
}

func TestPace(t *testing.T) {
	var p pace
	require.True(t, p.brief(4096, false))
	require.True(t, p.brief(briefSize, false))
	require.False(t, p.brief(briefSize+1, true))
	p.sample(4096, time.Now().Add(-time.Hour))
	require.False(t, p.brief(4096, false))
	require.True(t, p.brief(4096, true), "alone it may take a little longer")
	for range 10 {
		p.sample(4096, time.Now())
	}
	require.True(t, p.brief(4096, false), "one slow request is forgotten soon")
	for range 30 {
		p.sample(pieceSize, time.Now().Add(-150*time.Microsecond))
	}
	require.True(t, p.brief(4096, false), "copying a megabyte takes its time")
	for range 30 {
		p.sample(4096, time.Now().Add(-300*time.Microsecond))
	}
	require.False(t, p.brief(4096, true))
}

func TestPreferred(t *testing.T) {
	for block, want := range map[int]uint32{0: 512, 1: 512, 512: 512, 65536: 65536, 3 * 65536: 65536, 1 << 30: maxPayload} {
		require.Equal(t, want, preferred(block), "%d", block)
	}
}

func TestMessage(t *testing.T) {
	require.Equal(t, "plain", message("plain", 5))
	require.Equal(t, "a?b?", message("a\x00b\xff", 9))
	require.Equal(t, strings.Repeat("€", 3), message(strings.Repeat("€", 9), 11))
}
