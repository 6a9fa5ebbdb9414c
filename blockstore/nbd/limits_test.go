package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// gate lets operations of one kind wait.
type gate struct {
	op      string
	waiting chan struct{} // one message for each that has come
	open    chan struct{}
}

func newGate(m *mem, op string) *gate {
	g := &gate{op, make(chan struct{}, 1000), make(chan struct{})}
	m.setHook(func(op string, _, _ int64) error {
		if op == g.op {
			g.waiting <- struct{}{}
			<-g.open
		}
		return nil
	})
	return g
}

// Requests do not wait for each other, up to the limit of them.
func TestConcurrentRequests(t *testing.T) {
	kinds := map[uint16]string{cmdRead: "read", cmdWrite: "write", cmdFlush: "flush"}
	for _, r := range []request{{cmd: cmdRead, length: 4096}, {cmd: cmdWrite, length: 4096}, {cmd: cmdWrite, length: 128 << 10}, {cmd: cmdFlush}} {
		s, m := single()
		g := newGate(m, kinds[r.cmd])
		_, path := serve(t, s)
		c := connect(t, path, "", true)
		sent := map[uint64]request{}
		for i := range uint64(maxRequests + 5) {
			r.cookie = i
			sent[i] = r
		}
		go func() {
			for _, r := range sent {
				b := requestBytes(r)
				if r.cmd == cmdWrite {
					b = append(b, make([]byte, r.length)...)
				}
				c.Write(b)
			}
		}()
		for range maxRequests {
			<-g.waiting
		}
		select {
		case <-g.waiting:
			t.Fatal("more requests than the limit")
		case <-time.After(20 * time.Millisecond):
		}
		close(g.open)
		for range sent {
			require.Zero(t, c.answer(sent).code)
		}
		c.Close()
	}
}

// A request that the reader runs itself keeps the ones behind it waiting
// only for a moment: the TRIM that makes space for a WRITE comes through, and
// so do the replies that were held back before it.
func TestTakeOver(t *testing.T) {
	for _, length := range []uint32{512, 128 << 10} {
		s, m := single()
		freed := make(chan struct{})
		m.hook = func(op string, _, _ int64) error {
			switch op {
			case "write":
				<-freed
			case "discard":
				close(freed)
			}
			return nil
		}
		_, path := serve(t, s)
		c := connect(t, path, "", true)
		read := request{cmd: cmdRead, cookie: 1, off: 1 << 20, length: 4096}
		write := request{cmd: cmdWrite, cookie: 2, length: length}
		sent := map[uint64]request{1: read, 2: write, 3: {cmd: cmdTrim}}
		data := pattern(int(length))
		c.write(bytes.Join([][]byte{requestBytes(read), requestBytes(write), data}, nil))
		require.EqualValues(t, 1, c.answer(sent).cookie)

		// What follows must not end up in the buffer that is being written.
		c.write(bytes.Repeat(requestBytes(read), 40))
		for range 40 {
			require.EqualValues(t, 1, c.answer(sent).cookie)
		}
		c.write(requestBytes(request{cmd: cmdTrim, cookie: 3, off: 1 << 20, length: memBlock}))
		got := c.answer(sent).cookie + c.answer(sent).cookie
		require.EqualValues(t, 5, got)
		a := c.call(request{cmd: cmdRead, length: length}, nil)
		require.True(t, bytes.Equal(data, a.data))
	}
}

// A client that does not read its replies is a matter of its own.
func TestSlowReader(t *testing.T) {
	m := newMem(64 << 20)
	srv, path := serve(t, newStore(map[string]*mem{"disk": m}, "disk"))
	data := pattern(pieceSize)
	for off := int64(0); off < m.size; off += pieceSize {
		m.poke(data, off)
	}
	const clients = 12 // more than the shared memory suffices for
	var slow []*client
	sent := map[uint64]request{}
	for i := range maxRequests {
		sent[uint64(i)] = request{cmd: cmdRead, cookie: uint64(i), off: uint64(i) * pieceSize, length: pieceSize}
	}
	for range clients {
		c := connect(t, path, "", true)
		slow = append(slow, c)
		for _, r := range sent {
			c.write(requestBytes(r))
		}
	}
	eventually(t, func() bool { return srv.shared.used.Load() > sharedLimit-pieceSize }, "the memory is not used up")

	quick := connect(t, path, "", true)
	for i := range 20 {
		require.Zero(t, quick.call(request{cmd: cmdWrite, off: 3, length: uint32(i+1) * 300000}, make([]byte, (i+1)*300000)).code)
		require.Len(t, quick.call(request{cmd: cmdRead, length: uint32(i+1) * 300000}, nil).data, (i+1)*300000)
	}
	require.LessOrEqual(t, srv.shared.used.Load(), int64(sharedLimit))
	for _, c := range slow[:2] {
		left := map[uint64]request{}
		for k, v := range sent {
			left[k] = v
		}
		for len(left) > 0 {
			a := c.answer(left)
			require.Len(t, a.data, pieceSize)
			delete(left, a.cookie)
		}
	}
	for _, c := range slow[2:] {
		c.Close() // with replies unread
	}
}

// With no shared memory at all every request is served from the reserve.
func TestReserve(t *testing.T) {
	s := New(newStore(map[string]*mem{"disk": newMem(maxPayload)}, "disk"))
	s.shared.max = 0
	path := serveOn(t, s)
	for _, structured := range []bool{false, true} {
		c := connect(t, path, "", structured)
		data := pattern(maxPayload)
		require.Zero(t, c.call(request{cmd: cmdWrite, length: maxPayload}, data).code)
		require.True(t, bytes.Equal(data, c.call(request{cmd: cmdRead, length: maxPayload}, nil).data))
		require.True(t, bytes.Equal(data[5:5+wholeSize], c.call(request{cmd: cmdRead, off: 5, length: wholeSize}, nil).data))
	}
}

// Clients that vanish at any point leave nothing behind; serve checks that.
func TestVanishingClients(t *testing.T) {
	s, m := single()
	srv, path := serve(t, s)
	stream := bytes.Join([][]byte{
		requestBytes(request{cmd: cmdRead, length: 2 << 20}),
		requestBytes(request{cmd: cmdWrite, length: 100}), make([]byte, 100),
		requestBytes(request{cmd: cmdWrite, flags: cmdFlagFUA, length: 100 << 10}), make([]byte, 100<<10),
		requestBytes(request{cmd: cmdWrite, length: 3 << 20}), make([]byte, 3<<20),
		requestBytes(request{cmd: cmdWrite, off: 1 << 40, length: 1 << 20}), make([]byte, 1<<20),
		requestBytes(request{cmd: cmdFlush}),
	}, nil)
	for _, n := range []int{0, 1, 27, 28, 29, 60, 156, 184, 200, 5000, 102712, 150000, 1<<20 + 120000, 3<<20 + 120000, len(stream) - 20, len(stream)} {
		for _, structured := range []bool{false, true} {
			c := connect(t, path, "", structured)
			c.write(stream[:n])
			c.Close()
		}
	}
	eventually(t, func() bool { return m.count("close") > 0 }, "never closed")
	eventually(t, func() bool {
		srv.mu.Lock()
		defer srv.mu.Unlock()
		return len(srv.conns) == 0
	}, "connections are left")
}

func TestBadMagic(t *testing.T) {
	s, _ := single()
	srv := New(s)
	var mu sync.Mutex
	var logged []string
	srv.Log = func(err error) {
		mu.Lock()
		defer mu.Unlock()
		logged = append(logged, err.Error())
	}
	c := connect(t, serveOn(t, srv), "", true)
	b := requestBytes(request{cmd: cmdFlush})
	b[3]++
	c.write(b)
	c.closed()
	eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(logged) == 1 && logged[0] == "nbd: request with magic 0x25609514"
	}, "not logged")
}

// DISC lets the requests before it finish and answers them.
func TestDisconnect(t *testing.T) {
	s, m := single()
	g := newGate(m, "flush")
	_, path := serve(t, s)
	c := connect(t, path, "", true)
	c.write(append(requestBytes(request{cmd: cmdFlush, cookie: 5}), requestBytes(request{cmd: cmdDisc})...))
	<-g.waiting
	close(g.open)
	require.EqualValues(t, 5, c.answer(map[uint64]request{5: {cmd: cmdFlush}}).cookie)
	c.closed()
	eventually(t, func() bool { return m.count("close") == 1 }, "not closed")
	require.Equal(t, 2, m.count("flush"), "the last disconnect flushes")
}

// The connections of an export share it; the last one closes it, and who
// comes while it is being closed gets it anew.
func TestSharing(t *testing.T) {
	s, m := single()
	_, path := serve(t, s)
	a, b := connect(t, path, "disk", true), connect(t, path, "", false)
	require.Zero(t, a.call(request{cmd: cmdWrite, length: 3}, []byte("abc")).code)
	require.Equal(t, "abc", string(b.call(request{cmd: cmdRead, length: 3}, nil).data))
	require.Zero(t, b.call(request{cmd: cmdFlush}, nil).code)
	_, durable := m.state()
	require.Equal(t, 1, durable, "a FLUSH covers what other connections wrote")
	a.Close()
	require.Zero(t, b.call(request{cmd: cmdFlush}, nil).code)
	require.Equal(t, 1, s.opened("disk"))

	g := newGate(m, "flush")
	b.write(requestBytes(request{cmd: cmdDisc}))
	<-g.waiting
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() { connect(t, path, "", true).Close() })
	}
	time.Sleep(10 * time.Millisecond)
	require.Equal(t, 1, s.opened("disk"))
	close(g.open)
	wg.Wait()
	require.Greater(t, s.opened("disk"), 1)
}

// Haggling about one export and then taking another does not keep the first.
func TestChangeOfMind(t *testing.T) {
	s := two()
	_, path := serve(t, s)
	c := dial(t, path)
	c.greet(3)
	c.option(optInfo, goData("a"))
	c.option(optInfo, goData("b"))
	require.Equal(t, 1, s.devs["a"].count("close"))
	c.option(optInfo, goData("c"))
	require.Equal(t, 1, s.devs["b"].count("close"))
}

func TestTooManyConnections(t *testing.T) {
	s, _ := single()
	srv, path := serve(t, s)
	var conns []net.Conn
	for range maxConns {
		conns = append(conns, dial(t, path))
	}
	eventually(t, func() bool {
		srv.mu.Lock()
		defer srv.mu.Unlock()
		return len(srv.conns) == maxConns
	}, "not all are served")
	dial(t, path).closed()
	conns[0].Close()
	eventually(t, func() bool {
		srv.mu.Lock()
		defer srv.mu.Unlock()
		return len(srv.conns) < maxConns
	}, "no place is freed")
	connect(t, path, "", true)
}

func TestShutdown(t *testing.T) {
	s, m := single()
	srv, path := serve(t, s)
	g := newGate(m, "write")
	c, idle, haggling := connect(t, path, "", true), connect(t, path, "", true), dial(t, path)
	haggling.greet(3)
	c.write(append(requestBytes(request{cmd: cmdWrite, cookie: 4, length: 512}), make([]byte, 512)...))
	<-g.waiting
	ended := make(chan error)
	go func() { ended <- srv.Shutdown(context.Background()) }()
	idle.closed()
	haggling.closed()
	_, err := net.Dial("unix", path)
	require.Error(t, err)
	select {
	case <-ended:
		t.Fatal("the running request was not awaited")
	case <-time.After(10 * time.Millisecond):
	}
	close(g.open)
	require.Zero(t, c.answer(map[uint64]request{4: {cmd: cmdWrite}}).code)
	c.closed()
	require.NoError(t, <-ended)
	require.Equal(t, 1, m.durable)
	require.True(t, m.closed)
	require.NoError(t, srv.Close(), "a second time")

	l, err := net.Listen("unix", path+"2")
	require.NoError(t, err)
	require.NoError(t, srv.Serve(l))
	_, err = net.Dial("unix", path+"2")
	require.Error(t, err)
}

func TestShutdownFails(t *testing.T) {
	s, m := single()
	srv, path := serve(t, s)
	began, stuck := make(chan struct{}), make(chan struct{})
	m.hook = func(op string, _, _ int64) error {
		if op == "write" {
			close(began)
			<-stuck
		}
		return fmt.Errorf("%s failed: %w", op, syscall.EIO)
	}
	c := connect(t, path, "", true)
	c.write(append(requestBytes(request{cmd: cmdWrite, length: 512}), make([]byte, 512)...))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	<-began
	err := srv.Shutdown(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "nbd: 1 connections cut off")
	close(stuck)
	err = srv.Shutdown(context.Background())
	require.ErrorContains(t, err, `nbd: close export "disk": flush failed`)
	require.True(t, errors.Is(err, syscall.EIO))
	require.True(t, strings.HasPrefix(err.Error(), "nbd: close"), err)
}

// A listener that somebody else closes ends Serve with an error.
func TestListenerClosed(t *testing.T) {
	s, _ := single()
	l, err := net.Listen("unix", t.TempDir()+"/nbd")
	require.NoError(t, err)
	time.AfterFunc(10*time.Millisecond, func() { l.Close() })
	require.ErrorIs(t, New(s).Serve(l), net.ErrClosed)
}
