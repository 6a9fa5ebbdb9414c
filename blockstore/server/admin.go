package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/volume"
	"github.com/layerfs/layerfs/blockstore/wire"
	"github.com/layerfs/layerfs/internal/errs"
)

// admin carries out a call that is not about blocks.
func (c *conn) admin(ctx context.Context, body []byte) ([]byte, error) {
	var call wire.Call
	if err := json.Unmarshal(body, &call); err != nil {
		return nil, badRequest(err)
	}
	run, ok := calls[call.Name]
	if !ok {
		return nil, errs.New(errs.Usage, "the pool process knows no call %q", call.Name)
	}
	result, err := run(ctx, c, call.Args)
	if err != nil {
		return nil, err
	}
	return json.Marshal(result)
}

type caller func(ctx context.Context, c *conn, args json.RawMessage) (any, error)

// with makes a caller of a function with one typed argument.
func with[A any](run func(ctx context.Context, c *conn, a A) (any, error)) caller {
	return func(ctx context.Context, c *conn, args json.RawMessage) (any, error) {
		var a A
		if err := json.Unmarshal(args, &a); err != nil {
			return nil, badRequest(err)
		}
		return run(ctx, c, a)
	}
}

var calls = map[string]caller{
	wire.CallHello:     with(hello),
	wire.CallRecovered: func(_ context.Context, c *conn, _ json.RawMessage) (any, error) { c.s.back(c.lock); return nil, nil },
	wire.CallStatus:    func(_ context.Context, c *conn, _ json.RawMessage) (any, error) { return c.s.pool.Status(), nil },
	wire.CallDevices:   func(_ context.Context, c *conn, _ json.RawMessage) (any, error) { return c.s.pool.Devices() },
	wire.CallDevice:    with(func(_ context.Context, c *conn, name string) (any, error) { return c.s.pool.Device(name) }),
	wire.CallOpen:      with(func(_ context.Context, c *conn, name string) (any, error) { return c.session.Open(name) }),
	wire.CallClose: with(func(_ context.Context, c *conn, id uint32) (any, error) {
		c.session.Release(id)
		return nil, nil
	}),
	wire.CallCreate: with(func(_ context.Context, c *conn, d blockstore.NewDevice) (any, error) {
		return c.s.pool.CreateDevice(d)
	}),
	wire.CallDelete: with(func(_ context.Context, c *conn, id uint32) (any, error) {
		return nil, c.s.pool.DeleteDevice(id)
	}),
	wire.CallOpenRead: with(func(_ context.Context, c *conn, name string) (any, error) { return c.session.OpenToRead(name) }),
	wire.CallInfo:     with(func(_ context.Context, c *conn, name string) (any, error) { return c.s.pool.Info(name) }),
	wire.CallState: with(func(_ context.Context, c *conn, a wire.StateArgs) (any, error) {
		return nil, c.s.pool.SetState(a.Device, a.Key, a.State)
	}),
	wire.CallOrigin: with(func(_ context.Context, c *conn, a wire.OriginArgs) (any, error) {
		return nil, c.s.pool.SetOrigin(a.Device, a.Origin)
	}),
	wire.CallMessage: with(func(_ context.Context, c *conn, m string) (any, error) { return nil, c.s.pool.Message(m) }),
	wire.CallGrow:    with(func(_ context.Context, c *conn, size int64) (any, error) { return nil, c.s.pool.Resize(size) }),
	wire.CallSettle:  func(_ context.Context, c *conn, _ json.RawMessage) (any, error) { return nil, c.s.pool.SettleAll() },
	wire.CallTrim: func(ctx context.Context, c *conn, _ json.RawMessage) (any, error) {
		if err := c.s.awaitSettled(ctx); err != nil {
			return nil, err
		}
		return nil, c.s.pool.Trim()
	},
	wire.CallWait: with(func(ctx context.Context, c *conn, e blockstore.Event) (any, error) {
		return nil, c.s.pool.Wait(ctx, e)
	}),
	wire.CallTrace:    with(trace),
	wire.CallRead:     with(read),
	wire.CallDelta:    with(func(_ context.Context, c *conn, d [2]string) (any, error) { return delta(c, d) }),
	wire.CallDump:     with(func(ctx context.Context, c *conn, export bool) (any, error) { return c.s.dump(ctx, export) }),
	wire.CallShutdown: func(_ context.Context, c *conn, _ json.RawMessage) (any, error) { return nil, c.s.shutdown() },
}

func hello(_ context.Context, c *conn, h wire.Hello) (any, error) {
	c.lock = h.Lock
	st := c.s.pool.Status()
	w := wire.Welcome{UUID: st.UUID, BlockSize: st.BlockSize, SkipZeroing: st.Options.SkipZeroing,
		Freed: c.s.pool.Freed(), PID: os.Getpid()}
	w.Instance, w.Past = c.s.pool.Instances()
	return w, nil
}

func trace(_ context.Context, c *conn, a wire.TraceArgs) (any, error) {
	if _, err := c.s.pool.SettleDevice(a.Device); err != nil {
		return nil, err
	}
	block, owner, ok, err := c.s.pool.Trace(a.Device, a.Block)
	r := wire.TraceResult{Mapped: ok, Block: block, Owner: owner}
	if ok {
		r.Name = c.s.pool.NameOf(owner)
	}
	return r, err
}

// read reads of a device that may be open elsewhere.
func read(_ context.Context, c *conn, a wire.ReadArgs) (any, error) {
	if a.Length < 0 || a.Length > 1<<20 {
		return nil, errs.New(errs.Usage, "a read of %d bytes: at most a mebibyte is allowed", a.Length)
	}
	info, err := c.s.pool.SettleDevice(a.Device)
	if err != nil {
		return nil, err
	}
	st := c.s.pool.Status()
	buf := make([]byte, a.Length)
	err = c.s.pool.View(func() error {
		v, err := volume.New(c.session, volume.Config{ID: info.ID, Size: info.Size, BlockSize: st.BlockSize, Origin: info.Origin})
		if err != nil {
			return err
		}
		defer v.Abandon()
		n, err := v.ReadAt(buf, a.Offset)
		buf = buf[:n]
		if err == io.EOF {
			err = nil
		}
		return err
	})
	return buf, err
}

func delta(c *conn, names [2]string) (any, error) {
	for _, name := range names {
		if _, err := c.s.pool.SettleDevice(name); err != nil {
			return nil, err
		}
	}
	return c.s.pool.Delta(names[0], names[1])
}

// dump writes the metadata to a file that the client reads and removes, and
// the sidecar beside the data file.
func (s *server) dump(ctx context.Context, export bool) (any, error) {
	if err := s.pool.SettleAll(); err != nil {
		return nil, err
	}
	if err := s.realize(ctx); err != nil {
		return nil, err
	}
	if export {
		if err := s.pool.SetExported(); err != nil {
			return nil, err
		}
	}
	name, err := s.writeDump()
	if err != nil && export {
		return nil, errors.Join(err, s.pool.Unexport())
	}
	return name, err
}

// realize makes blocks of what the dumped metadata has no words for.
func (s *server) realize(ctx context.Context) error {
	devices, err := s.pool.Devices()
	if err != nil {
		return err
	}
	for _, d := range devices {
		if d.Origin == nil {
			continue
		}
		if err := s.realizeDevice(ctx, d); err != nil {
			return fmt.Errorf("device %q: %w", d.Name, err)
		}
	}
	return nil
}

func (s *server) realizeDevice(ctx context.Context, d blockstore.DeviceInfo) error {
	st := s.pool.Status()
	if st.Mode != blockstore.ReadWrite.String() {
		return nil // what cannot be dumped is refused
	}
	session := s.pool.NewSession(nobody{})
	defer session.Close()
	if _, err := session.Open(d.Name); err != nil {
		return err
	}
	v, err := volume.New(session, volume.Config{ID: d.ID, Size: d.Size, BlockSize: st.BlockSize, SkipZeroing: st.Options.SkipZeroing, Origin: d.Origin})
	if err != nil {
		return err
	}
	err = v.Realize(ctx, d.Origin.Size)
	return errors.Join(err, v.Close())
}

// nobody is an owner that holds nothing back.
type nobody struct{}

func (nobody) Settle(uint32) error { return nil }
func (nobody) Drop(uint32)         {}
func (nobody) GiveBack()           {}

func (s *server) writeDump() (name string, err error) {
	f, err := os.CreateTemp(".", DumpPrefix)
	if err != nil {
		return "", err
	}
	defer f.Close()
	side, err := s.pool.Dump(f)
	if err == nil {
		err = blockstore.WriteSidecar(side)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return filepath.Base(f.Name()), err
}

// shutdown ends the process, unless a device is open.
func (s *server) shutdown() error {
	devices, err := s.pool.Devices()
	if err != nil {
		return err
	}
	for _, d := range devices {
		if d.Active {
			return errs.New(errs.Busy, "thin device %q is in use: %w", d.Name, unix.EBUSY)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ending {
		s.ending = true
		close(s.stopped)
	}
	return nil
}
