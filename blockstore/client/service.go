package client

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/volume"
	"github.com/layerfs/layerfs/blockstore/wire"
	"github.com/layerfs/layerfs/internal/errs"
)

// opened is how a device was opened.
type opened struct {
	name string
	call string // wire.CallOpen or wire.CallOpenRead
}

// Volume opens a device. origin is its external origin when the caller has
// that open already, else nil.
func (c *Client) Volume(name string, origin volume.ReaderAt) (*Device, error) {
	if err := c.takeLock(); err != nil {
		return nil, err
	}
	return c.open(opened{name, wire.CallOpen}, origin)
}

// VolumeToRead opens a device that nobody changes meanwhile, to read it only.
func (c *Client) VolumeToRead(name string, origin volume.ReaderAt) (*Device, error) {
	return c.open(opened{name, wire.CallOpenRead}, origin)
}

func (c *Client) open(o opened, origin volume.ReaderAt) (*Device, error) {
	info, err := c.acquire(o)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	w := c.welcome
	c.mu.Unlock()
	v, err := volume.New((*service)(c), volume.Config{ID: info.ID, Size: info.Size, BlockSize: w.BlockSize,
		SkipZeroing: w.SkipZeroing, Origin: info.Origin, OriginFile: origin, PushEvery: c.PushEvery})
	if err != nil {
		return nil, errors.Join(err, c.closeVolume(info.ID, (*volume.Volume).Close))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.volumes[info.ID] = v
	return &Device{Volume: v, c: c, id: info.ID}, nil
}

// acquire opens a device in the pool, and sees to it that a next process
// hears of it: one that comes between the answer and the note would not.
func (c *Client) acquire(o opened) (info blockstore.DeviceInfo, err error) {
	for noted := false; ; noted = true {
		c.mu.Lock()
		conn := c.conn
		c.mu.Unlock()
		if err := c.call(context.Background(), o.call, o.name, &info); err != nil {
			return info, err
		}
		c.mu.Lock()
		_, open := c.names[info.ID]
		c.names[info.ID] = o
		same := c.conn == conn
		c.mu.Unlock()
		switch {
		case open && !noted:
			return info, errs.New(errs.Busy, "thin device %q is open in this process: %w", o.name, unix.EBUSY)
		case same:
			return info, nil
		}
	}
}

// Device is a volume that lets go of its device when it is closed.
type Device struct {
	*volume.Volume
	c  *Client
	id uint32
}

// ID is the device's id in the pool.
func (d *Device) ID() uint32 { return d.id }

// Close makes the device durable and lets go of it.
func (d *Device) Close() error { return d.c.closeVolume(d.id, (*volume.Volume).Close) }

// LetGo lets go of the device; the pool makes it durable in time.
func (d *Device) LetGo() error { return d.c.closeVolume(d.id, (*volume.Volume).LetGo) }

func (c *Client) closeVolume(id uint32, end func(*volume.Volume) error) error {
	c.mu.Lock()
	v, named := c.volumes[id], c.names[id].name != ""
	c.mu.Unlock()
	if !named {
		return nil
	}
	var err error
	if v != nil {
		err = end(v)
	}
	if e := c.call(context.Background(), wire.CallClose, id, nil); err == nil {
		err = e
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.volumes, id)
	delete(c.names, id)
	return err
}

// service is the client as its volumes see it.
type service Client

func (s *service) client() *Client { return (*Client)(s) }

func (s *service) Data() blockstore.DataFile { return s.data }

func (s *service) Freed() uint64 { return s.freed.Load() }

func (s *service) Leaf(id uint32, leaf uint64) (*blockstore.LeafMap, error) {
	body, err := s.client().do(context.Background(), wire.Leaf, wire.Words(uint64(id), leaf))
	if err != nil {
		return nil, err
	}
	return wire.ParseLeaf(body)
}

func (s *service) Reserve(ctx context.Context, n int) ([]blockstore.Grant, error) {
	for {
		conn, err := s.current()
		if err != nil {
			return nil, err
		}
		// The journal has the blocks before it can be repeated to a next
		// process.
		body, err := conn.roundTripFirst(ctx, wire.Reserve, wire.Words(uint64(n)), func(body []byte) {
			if grants, err := wire.ParseGrants(body); err == nil {
				s.journal.reserve(grants)
			}
		})
		if errors.Is(err, errGone) {
			if err := s.client().reconnect(conn); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		return wire.ParseGrants(body)
	}
}

func (s *service) Return(blocks []uint64) {
	// The request is not repeated to a next process: that knows of none, and may
	// have given the blocks to another volume of this client meanwhile.
	conn, err := s.current()
	s.journal.unreserve(blocks)
	if err == nil {
		_, _ = conn.roundTrip(context.Background(), wire.Return, wire.Words(blocks...))
	}
}

func (s *service) Assign(id uint32, list []blockstore.Assignment) error {
	return s.change(&entry{kind: wire.Assign, id: id, list: list}, wire.AssignBody(id, list))
}

func (s *service) Unmap(id uint32, from, count uint64) error {
	return s.change(&entry{kind: wire.Unmap, id: id, from: from, count: count}, wire.Words(uint64(id), from, count))
}

func (s *service) SetZero(id uint32, from, count uint64) error {
	return s.change(&entry{kind: wire.SetZero, id: id, from: from, count: count}, wire.Words(uint64(id), from, count))
}

// change sends a change of mappings and keeps it until it is durable. When
// the process dies meanwhile, the journal may have told the next one of it.
func (s *service) change(e *entry, body []byte) error {
	conn, err := s.current()
	if err != nil {
		return err
	}
	s.journal.begin(e)
	for {
		answer, err := s.once(context.Background(), conn, e.kind, body)
		if errors.Is(err, errGone) {
			// First the connection, then the question: what the journal tells
			// after that is told because this connection is dead as well.
			if conn, err = s.current(); err == nil && !s.journal.told(e) {
				continue
			}
			if err == nil {
				return nil
			}
		}
		var w []uint64
		if err == nil {
			w, err = wire.ParseWords(answer, 1)
		}
		if err != nil {
			s.journal.drop(e)
			return err
		}
		s.journal.answered(e, conn.instance, w[0])
		return nil
	}
}

// current is the connection in use.
func (s *service) current() (*conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn, s.dead
}

// once makes a request; errGone says that the process died meanwhile and a
// new one has been told what is in the journal.
func (s *service) once(ctx context.Context, conn *conn, kind wire.Kind, body []byte) ([]byte, error) {
	answer, err := conn.roundTrip(ctx, kind, body)
	if errors.Is(err, errGone) {
		if failed := s.client().reconnect(conn); failed != nil {
			return nil, failed
		}
	}
	return answer, err
}

func (s *service) Resize(id uint32, size int64) error {
	return s.change(&entry{kind: wire.SetSize, id: id, from: uint64(size)}, wire.Words(uint64(id), uint64(size), 0))
}

// Flush asks the pool process only if it must commit something; what is
// mapped durably needs nothing but the data file synced.
func (s *service) Flush(id uint32, list []blockstore.Assignment) error {
	pending := s.journal.of(id)
	if len(list) == 0 && len(pending) == 0 {
		return s.syncData()
	}
	conn, err := s.current()
	if err != nil {
		return err
	}
	e := &entry{kind: wire.Assign, id: id, list: list}
	if len(list) > 0 {
		s.journal.begin(e)
		pending = append(pending, e)
	}
	for {
		_, err := s.once(context.Background(), conn, wire.Flush, wire.AssignBody(id, list))
		if errors.Is(err, errGone) {
			if conn, err = s.current(); err == nil {
				if s.journal.told(e) {
					list = nil
				}
				continue
			}
		}
		if err != nil {
			s.settleFailed(conn, e, list)
			return err
		}
		for _, e := range pending {
			s.journal.drop(e)
		}
		return nil
	}
}

// settleFailed finds out whether a flush that failed has assigned its list:
// adopting what is assigned already changes nothing.
func (s *service) settleFailed(conn *conn, e *entry, list []blockstore.Assignment) {
	if len(list) == 0 {
		return
	}
	answer, err := conn.roundTrip(context.Background(), wire.Adopt, wire.AssignBody(e.id, list))
	if errors.Is(err, errGone) {
		return // the journal tells the next process
	}
	if err != nil {
		s.journal.drop(e)
	} else if w, err := wire.ParseWords(answer, 1); err == nil {
		s.journal.answered(e, conn.instance, w[0])
	}
}

func (s *service) syncData() error {
	err := s.data.Sync()
	if err != nil {
		_, _ = s.client().do(context.Background(), wire.DataFailed, wire.EncodeError(err))
	}
	return err
}
