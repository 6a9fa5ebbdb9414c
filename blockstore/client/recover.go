package client

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/volume"
	"github.com/layerfs/layerfs/blockstore/wire"
	"github.com/layerfs/layerfs/internal/errs"
)

// do makes a request and repeats it when the pool process dies meanwhile.
func (c *Client) do(ctx context.Context, kind wire.Kind, body []byte) ([]byte, error) {
	for {
		c.mu.Lock()
		conn, dead := c.conn, c.dead
		if c.closed {
			dead = errClosed
		}
		c.mu.Unlock()
		if dead != nil {
			return nil, dead
		}
		answer, err := conn.roundTrip(ctx, kind, body)
		if !errors.Is(err, errGone) {
			return answer, err
		}
		if err := c.reconnect(conn); err != nil {
			return nil, err
		}
	}
}

// restartTime is how long pool processes may die in a row, each before the
// client has told it all, until the client gives up.
const restartTime = 30 * time.Second

// reconnect replaces the connection old, which has ended.
func (c *Client) reconnect(old *conn) error {
	c.reconnecting.Lock()
	defer c.reconnecting.Unlock()
	c.mu.Lock()
	current, dead, closed := c.conn, c.dead, c.closed
	c.mu.Unlock()
	switch {
	case closed:
		return errClosed
	case dead != nil:
		return dead
	case current != old:
		return nil
	}
	var err error
	for end, try := time.Now().Add(restartTime), 0; time.Now().Before(end) && !c.isClosed(); try++ {
		if err = c.connect(); err == nil {
			return nil
		}
		if !errors.Is(err, errGone) && !errors.Is(err, errDied) {
			break
		}
		time.Sleep(time.Duration(min(try, 20)) * 50 * time.Millisecond)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = errs.New(errs.Of(err), "the pool process died and could not be replaced: %w: %w", err, unix.EIO)
	return c.dead
}

// lostConnection is told when a connection has ended. Who may have
// something to adopt comes back at once: others wait for it.
func (c *Client) lostConnection(old *conn) {
	c.mu.Lock()
	needed := c.conn == old && c.lock != nil && !c.closed
	c.mu.Unlock()
	if needed {
		_ = c.reconnect(old) // whoever calls next is told
	}
}

func (c *Client) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// connect reaches the pool process and tells it what it may have forgotten.
// The connection serves others only when that is done.
func (c *Client) connect() error {
	sock, fd, err := c.launcher.reach(c.dir, c.name, c.isClosed)
	if err != nil {
		return err
	}
	data := blockstore.DataFrom(os.NewFile(uintptr(fd), "data"))
	conn := newConn(sock, c.asked, c.lostConnection)
	if err := c.introduce(conn, data); err != nil {
		conn.close()
		data.Close()
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.close() // Close has not seen it
		data.Close()
		return errClosed
	}
	if c.data == nil {
		c.data = data
	} else {
		data.Close() // the first one is of the same file, and Volumes have it
	}
	c.conn = conn
	return nil
}

func (c *Client) introduce(conn *conn, data blockstore.DataFile) error {
	c.mu.Lock()
	hello := wire.Hello{}
	if c.lock != nil {
		hello.Lock = filepath.Base(c.lockName)
	}
	names := make(map[uint32]opened, len(c.names))
	for id, name := range c.names {
		names[id] = name
	}
	known := c.welcome.UUID
	c.mu.Unlock()
	var w wire.Welcome
	if err := adminOn(conn, wire.CallHello, hello, &w); err != nil {
		return err
	}
	if known != "" && known != w.UUID {
		return errs.New(errs.Corrupt, "the pool %s has become another one", c.name)
	}
	c.mu.Lock()
	c.welcome = w
	c.mu.Unlock()
	conn.instance = w.Instance
	c.freed.Store(w.Freed)
	for id, o := range names {
		var info blockstore.DeviceInfo
		if err := adminOn(conn, o.call, o.name, &info); err != nil {
			return err
		}
		if info.ID != id {
			return errs.New(errs.Corrupt, "device %q has become another one", o.name)
		}
	}
	if err := c.journal.replay(conn, &w); err != nil {
		return err
	}
	return adminOn(conn, wire.CallRecovered, nil, nil)
}

func adminOn(conn *conn, name string, args, result any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	body, err := json.Marshal(wire.Call{Name: name, Args: raw})
	if err != nil {
		return err
	}
	answer, err := conn.roundTrip(context.Background(), wire.Admin, body)
	if err != nil || result == nil {
		return err
	}
	return json.Unmarshal(answer, result)
}

// asked takes what the server sends by itself.
func (c *Client) asked(conn *conn, f wire.Frame) {
	w, err := wire.ParseWords(f.Body, 0)
	if err != nil {
		return
	}
	switch {
	case f.Kind == wire.Published && len(w) == 2:
		// Until the journal has been repeated its numbers are those of the
		// process that died.
		c.mu.Lock()
		current := c.conn == conn
		c.mu.Unlock()
		if current {
			c.freed.Store(w[1])
			c.journal.durable(conn.instance, w[0])
		}
	case f.Kind == wire.Settle && len(w) == 1:
		go c.reply(conn, f.ID, func(v *volume.Volume) error { return v.Settle() }, w[0])
	case f.Kind == wire.Drop && len(w) == 1:
		go c.reply(conn, f.ID, func(v *volume.Volume) error {
			c.journal.forget(uint32(w[0]))
			v.Drop()
			return nil
		}, w[0])
	case f.Kind == wire.GiveBack:
		go func() {
			for _, v := range c.openVolumes() {
				v.GiveBack()
			}
			_ = conn.wire.Send(wire.Frame{Kind: wire.Done, ID: f.ID})
		}()
	}
}

// reply does what the server asks with a volume and says so.
func (c *Client) reply(conn *conn, ask uint64, run func(*volume.Volume) error, id uint64) {
	c.mu.Lock()
	v := c.volumes[uint32(id)]
	c.mu.Unlock()
	var body []byte
	if v != nil {
		if err := run(v); err != nil {
			body = wire.EncodeError(err)
		}
	}
	_ = conn.wire.Send(wire.Frame{Kind: wire.Done, ID: ask, Body: body})
}

func (c *Client) openVolumes() []*volume.Volume {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*volume.Volume, 0, len(c.volumes))
	for _, v := range c.volumes {
		out = append(out, v)
	}
	return out
}

// Program is the argument vector that runs this program's hidden command for
// a pool process.
func Program(command string) []string { return []string{"/proc/self/exe", command} }
