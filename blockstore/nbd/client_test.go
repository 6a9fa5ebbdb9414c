package nbd

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serve starts a server on a unix socket and returns the socket's path. It
// must have ended, with all it took given back, before the test does.
func serve(t *testing.T, exports Exports) (*Server, string) {
	t.Helper()
	s := New(exports)
	return s, serveOn(t, s)
}

func serveOn(t *testing.T, s *Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nbd")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s.Shutdown(ctx)
		require.NoError(t, <-ended)
		require.Zero(t, s.shared.used.Load())
		require.Empty(t, s.registry.open)
	})
	return path
}

// client speaks the raw protocol; what it receives has to come soon.
type client struct {
	t *testing.T
	net.Conn
	structured bool
}

func dial(t *testing.T, path string) *client {
	t.Helper()
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{t: t, Conn: conn}
}

// connect dials and does the handshake for an export.
func connect(t *testing.T, path, name string, structured bool) *client {
	t.Helper()
	c := dial(t, path)
	c.greet(3)
	if structured {
		c.option(optStructuredReply, nil)
		replies := c.option(optSetMetaContext, metaQuery(name, contextName))
		require.Len(t, replies, 2)
		c.structured = true
	}
	replies := c.option(optGo, goData(name))
	require.EqualValues(t, repAck, replies[len(replies)-1].kind)
	return c
}

func (c *client) write(b []byte) {
	c.t.Helper()
	_, err := c.Write(b)
	require.NoError(c.t, err)
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	_, err := io.ReadFull(c, b)
	require.NoError(c.t, err)
	return b
}

// closed requires that the server hangs up without another byte.
func (c *client) closed() {
	c.t.Helper()
	n, err := c.Conn.Read(make([]byte, 1))
	require.Zero(c.t, n)
	// A unix socket that is closed with data unread resets its peer.
	require.True(c.t, err == io.EOF || errors.Is(err, errReset), "%v", err)
}

func (c *client) greet(flags uint32) {
	c.t.Helper()
	require.Equal(c.t, "NBDMAGICIHAVEOPT\x00\x03", string(c.read(18)))
	c.write(be.AppendUint32(nil, flags))
}

type optReply struct {
	kind uint32
	data string
}

func optionBytes(id uint32, data []byte) []byte {
	b := be.AppendUint64(nil, magicOption)
	b = be.AppendUint32(be.AppendUint32(b, id), uint32(len(data)))
	return append(b, data...)
}

// option sends an option and returns the replies up to the final one.
func (c *client) option(id uint32, data []byte) (list []optReply) {
	c.t.Helper()
	c.write(optionBytes(id, data))
	return c.optionReplies(id)
}

func (c *client) optionReplies(id uint32) (list []optReply) {
	c.t.Helper()
	for {
		h := c.read(20)
		require.EqualValues(c.t, uint64(magicReply), be.Uint64(h))
		require.Equal(c.t, id, be.Uint32(h[8:]))
		r := optReply{be.Uint32(h[12:]), string(c.read(int(be.Uint32(h[16:]))))}
		list = append(list, r)
		if r.kind == repAck || r.kind&(1<<31) != 0 {
			return list
		}
	}
}

func str(s string) []byte { return append(be.AppendUint32(nil, uint32(len(s))), s...) }

func goData(name string, infos ...uint16) []byte {
	b := be.AppendUint16(str(name), uint16(len(infos)))
	for _, i := range infos {
		b = be.AppendUint16(b, i)
	}
	return b
}

func metaQuery(name string, queries ...string) []byte {
	b := be.AppendUint32(str(name), uint32(len(queries)))
	for _, q := range queries {
		b = append(b, str(q)...)
	}
	return b
}

func requestBytes(r request) []byte {
	b := be.AppendUint32(nil, magicRequest)
	b = be.AppendUint16(be.AppendUint16(b, r.flags), r.cmd)
	b = be.AppendUint64(be.AppendUint64(b, r.cookie), r.off)
	return be.AppendUint32(b, r.length)
}

// answer is a whole reply, put together from its chunks.
type answer struct {
	cookie uint64
	code   uint32
	text   string
	data   []byte   // of a read
	chunks []uint16 // types
	list   []uint32 // of a block status: lengths and states
}

// call sends a request and returns its answer.
func (c *client) call(r request, payload []byte) answer {
	c.t.Helper()
	c.write(append(requestBytes(r), payload...))
	return c.answer(map[uint64]request{r.cookie: r})
}

// answer receives the next answer that is complete.
func (c *client) answer(sent map[uint64]request) answer {
	c.t.Helper()
	parts := map[uint64]*answer{}
	for {
		if a := c.piece(sent, parts); a != nil {
			return *a
		}
	}
}

// piece receives a simple reply or a chunk, and returns the answer that it
// completes, if it does. parts are the others, by their cookies.
func (c *client) piece(sent map[uint64]request, parts map[uint64]*answer) *answer {
	c.t.Helper()
	magic := be.Uint32(c.read(4))
	if magic == magicSimple {
		h := c.read(12)
		a := answer{code: be.Uint32(h), cookie: be.Uint64(h[4:])}
		r, known := sent[a.cookie]
		require.True(c.t, known, "answer to cookie %d", a.cookie)
		require.False(c.t, r.cmd == cmdRead && c.structured, "simple reply to a structured read")
		if r.cmd == cmdRead && a.code == 0 {
			a.data = c.read(int(r.length))
		}
		return &a
	}
	require.EqualValues(c.t, magicStructured, magic)
	require.True(c.t, c.structured)
	h := c.read(16)
	cookie := be.Uint64(h[4:])
	r, known := sent[cookie]
	require.True(c.t, known, "chunk for cookie %d", cookie)
	a := parts[cookie]
	if a == nil {
		a = &answer{cookie: cookie}
		parts[cookie] = a
	}
	c.chunk(a, r, be.Uint16(h[2:]), c.read(int(be.Uint32(h[12:]))))
	if be.Uint16(h) == chunkDone {
		delete(parts, cookie)
		return a
	}
	require.Zero(c.t, be.Uint16(h))
	return nil
}

func (c *client) chunk(a *answer, r request, kind uint16, p []byte) {
	c.t.Helper()
	a.chunks = append(a.chunks, kind)
	switch kind {
	case chunkOffsetData, chunkOffsetHole:
		require.EqualValues(c.t, cmdRead, r.cmd)
		require.Equal(c.t, r.off+uint64(len(a.data)), be.Uint64(p), "not the next offset")
		if kind == chunkOffsetHole {
			require.Len(c.t, p, 12)
			a.data = append(a.data, make([]byte, be.Uint32(p[8:]))...)
		} else {
			a.data = append(a.data, p[8:]...)
		}
	case chunkError:
		a.code = be.Uint32(p)
		require.Len(c.t, p[6:], int(be.Uint16(p[4:])))
		a.text = string(p[6:])
	case chunkBlockStatus:
		require.EqualValues(c.t, contextID, be.Uint32(p))
		for p = p[4:]; len(p) > 0; p = p[4:] {
			a.list = append(a.list, be.Uint32(p))
		}
	default:
		c.t.Fatalf("chunk type %d", kind)
	}
}

// eventually waits for cond, which another goroutine will make true.
func eventually(t *testing.T, cond func() bool, what string) {
	t.Helper()
	require.Eventually(t, cond, 10*time.Second, time.Millisecond, what)
}
