package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/server"
	"github.com/layerfs/layerfs/blockstore/volume"
	"github.com/layerfs/layerfs/blockstore/wire"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// Client is a user of a pool. Its methods may be called concurrently.
type Client struct {
	launcher launcher
	dir      *os.File // the pool's directory
	path     string   // by which dir can be reached
	name     string   // for messages

	// PushEvery is volume.Config's of the devices that are opened. Changed
	// only before that.
	PushEvery time.Duration

	reconnecting sync.Mutex

	mu       sync.Mutex
	conn     *conn // the connection in use
	volumes  map[uint32]*volume.Volume
	names    map[uint32]opened // of the volumes
	journal  journal
	lock     *os.File // our lock file, held while we may have unassigned blocks
	lockName string   // its path
	data     blockstore.DataFile
	welcome  wire.Welcome
	dead     error // the pool could not be reached any more
	closed   bool

	freed atomic.Uint64
}

// Open connects to the pool in dir, starting its process if need be with
// program, an argument vector to which the directory is appended.
func Open(dir string, program []string) (*Client, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if os.IsNotExist(err) {
			return nil, errs.New(errs.NotFound, "pool %s does not exist", dir)
		}
		return nil, fmt.Errorf("pool %s: %w", dir, err)
	}
	return OpenAt(f, path, Exec(program))
}

// OpenAt is Open for a directory that is open already, which the client takes
// over; name is what it is called.
func OpenAt(dir *os.File, name string, start Starter) (*Client, error) {
	c := &Client{launcher: launcher{start}, dir: dir, name: name, path: fmt.Sprintf("/proc/self/fd/%d", dir.Fd()),
		volumes: map[uint32]*volume.Volume{}, names: map[uint32]opened{}}
	if _, err := os.Lstat(filepath.Join(c.path, "index")); err != nil {
		dir.Close()
		return nil, errs.New(errs.NotFound, "%s is not a pool: it has no index", name)
	}
	c.journal.init()
	if err := c.connect(); err != nil {
		dir.Close()
		return nil, err
	}
	return c, nil
}

// Close closes all volumes and the connection. The error is of a volume
// that could not be made durable.
func (c *Client) Close() error {
	c.mu.Lock()
	ids := make([]uint32, 0, len(c.volumes))
	for id := range c.volumes {
		ids = append(ids, id)
	}
	c.mu.Unlock()
	var all error
	for _, id := range ids {
		all = errors.Join(all, c.closeVolume(id, (*volume.Volume).Close))
	}
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.reconnecting.Lock() // who is at it stops
	defer c.reconnecting.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.close()
	}
	c.dropLock()
	if c.data != nil {
		c.data.Close()
	}
	c.dir.Close()
	return all
}

// call makes an Admin call. args and result may be nil.
func (c *Client) call(ctx context.Context, name string, args, result any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	body, err := json.Marshal(wire.Call{Name: name, Args: raw})
	if err != nil {
		return err
	}
	answer, err := c.do(ctx, wire.Admin, body)
	if err != nil || result == nil {
		return err
	}
	return json.Unmarshal(answer, result)
}

// Status describes the pool.
func (c *Client) Status() (s blockstore.Status, err error) {
	err = c.call(context.Background(), wire.CallStatus, nil, &s)
	return s, err
}

// Devices lists the devices by id. Devices that are open elsewhere may map
// more than is told.
func (c *Client) Devices() (list []blockstore.DeviceInfo, err error) {
	err = c.call(context.Background(), wire.CallDevices, nil, &list)
	return list, err
}

// Device describes one device.
func (c *Client) Device(name string) (d blockstore.DeviceInfo, err error) {
	err = c.call(context.Background(), wire.CallDevice, name, &d)
	return d, err
}

// Info is Device without counting the exclusive blocks.
func (c *Client) Info(name string) (d blockstore.DeviceInfo, err error) {
	err = c.call(context.Background(), wire.CallInfo, name, &d)
	return d, err
}

// SetState sets the state in the Use, which has that key, of a device. It is
// durable with the next commit.
func (c *Client) SetState(name, key, state string) error {
	return c.call(context.Background(), wire.CallState, wire.StateArgs{Device: name, Key: key, State: state}, nil)
}

// SetOrigin says where the external origin of a device is now, durably.
func (c *Client) SetOrigin(name string, o blockstore.Origin) error {
	return c.call(context.Background(), wire.CallOrigin, wire.OriginArgs{Device: name, Origin: o}, nil)
}

// BlockSize is the size of a block of the pool in bytes.
func (c *Client) BlockSize() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.welcome.BlockSize
}

// UUID is the pool's.
func (c *Client) UUID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.welcome.UUID
}

// Create makes a device or a snapshot, durably.
func (c *Client) Create(spec blockstore.NewDevice) (d blockstore.DeviceInfo, err error) {
	spec.Nonce = nonce()
	err = c.call(context.Background(), wire.CallCreate, spec, &d)
	return d, err
}

// Delete removes a device and returns when its blocks are free.
func (c *Client) Delete(name string) error {
	d, err := c.Device(name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	before := c.conn
	c.mu.Unlock()
	err = c.call(context.Background(), wire.CallDelete, d.ID, nil)
	if errors.Is(err, unix.ENODATA) && !before.alive() {
		return nil // the process that died had done it
	}
	return err
}

// Message carries out a message of the thin-pool target.
func (c *Client) Message(text string) error {
	return c.call(context.Background(), wire.CallMessage, text, nil)
}

// Grow sets the size of the pool's data in bytes.
func (c *Client) Grow(size int64) error {
	return c.call(context.Background(), wire.CallGrow, size, nil)
}

// Settle has every user of the pool assign what it has written, so that what
// is told of devices that are open elsewhere is up to date.
func (c *Client) Settle() error { return c.call(context.Background(), wire.CallSettle, nil, nil) }

// Trim gives the space of all free blocks back to the file system.
func (c *Client) Trim() error { return c.call(context.Background(), wire.CallTrim, nil, nil) }

// Wait returns when the event holds, or ctx ends.
func (c *Client) Wait(ctx context.Context, e blockstore.Event) error {
	return c.call(ctx, wire.CallWait, e, nil)
}

// Trace says where a virtual block lives.
func (c *Client) Trace(device string, block uint64) (r wire.TraceResult, err error) {
	err = c.call(context.Background(), wire.CallTrace, wire.TraceArgs{Device: device, Block: block}, &r)
	return r, err
}

// ReadAt reads up to a mebibyte of a device that need not be open here, and
// may be open elsewhere. Fewer bytes than asked for mean its end.
func (c *Client) ReadAt(device string, off int64, length int) (data []byte, err error) {
	err = c.call(context.Background(), wire.CallRead, wire.ReadArgs{Device: device, Offset: off, Length: length}, &data)
	return data, err
}

// Delta compares the mappings of two devices.
func (c *Client) Delta(left, right string) (d []blockstore.Difference, err error) {
	err = c.call(context.Background(), wire.CallDelta, [2]string{left, right}, &d)
	return d, err
}

// Dump writes the pool's metadata as thin_dump's XML, and the sidecar beside
// the data file. With export the pool takes no writes any more.
func (c *Client) Dump(w io.Writer, export bool) error {
	var name string
	if err := c.call(context.Background(), wire.CallDump, export, &name); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(c.path, filepath.Base(name)))
	if err != nil {
		return err
	}
	defer f.Close()
	_ = os.Remove(f.Name()) // the next pool process would
	_, err = io.Copy(w, f)
	return err
}

// Shutdown ends the pool's process, EBUSY while a device is open, and takes
// the lock that keeps another from starting. Only Close is of use afterwards.
func (c *Client) Shutdown() (unlock func(), err error) {
	c.mu.Lock()
	c.closed = true // the end of the connection is no reason to reconnect
	conn := c.conn
	c.mu.Unlock()
	body, err := json.Marshal(wire.Call{Name: wire.CallShutdown})
	if err != nil {
		return nil, err
	}
	if _, err := conn.roundTrip(context.Background(), wire.Admin, body); err != nil && !errors.Is(err, errGone) {
		return nil, err
	}
	return server.Lock(c.path, func() bool { return false })
}

// Resize sets the size of a device that nobody has open, in bytes.
func (c *Client) Resize(device string, size int64) error {
	v, err := c.Volume(device, nil)
	if err != nil {
		return err
	}
	if err := v.Resize(size); err != nil {
		v.Close()
		return err
	}
	return v.Close()
}

func nonce() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// takeLock makes our lock file, which tells a new pool process to wait for us.
func (c *Client) takeLock() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lock != nil {
		return nil
	}
	id := nonce()
	name := filepath.Join(c.path, server.ClientPrefix+id)
	// A process that starts just now takes a file that nobody holds for one
	// that was left: it gets its name when it is locked.
	f, err := os.OpenFile(filepath.Join(c.path, "new-"+id), os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("lock file of a client: %w", err)
	}
	err = sys.Flock(int(f.Fd()))
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
		f.Close()
		return err
	}
	c.lock, c.lockName = f, name
	return nil
}

// dropLock removes the lock file. mu is held.
func (c *Client) dropLock() {
	if c.lock != nil {
		_ = os.Remove(c.lockName)
		c.lock.Close()
		c.lock = nil
	}
}
