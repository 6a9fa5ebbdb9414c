package main

import (
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/client"
	"github.com/layerfs/layerfs/blockstore/volume"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/stub"
)

// privatePool is what a private pool is made with: it is as large as it needs to be,
// and full when the file system is.
var privatePool = blockstore.Options{
	DataSize: 64 << 20, AutoextendAt: 80, AutoextendBy: 100, ErrorIfNoSpace: true, Small: true,
}

// poolsOf are the pools of one mount or one command.
type poolsOf struct {
	start  client.Starter // of pool processes
	make   client.Starter // of poolMaker
	shared string         // directory of the pool that pool= names, "" for none
}

// Private implements stub.Pools.
func (p *poolsOf) Private(dir *os.File, name string, create bool) (stub.Store, error) {
	if create {
		if err := p.makePrivate(dir, name); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Openat(int(dir.Fd()), stub.PoolDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errs.New(errs.NotFound, "pool %s: %w", name, err)
	}
	return openStore(os.NewFile(uintptr(fd), name), name, p.start, true)
}

// pushEvery is how long what was written and not synced may be lost with the
// daemon of a mount; nothing of it is lost with the pool process.
const pushEvery = 20 * time.Millisecond

func openStore(dir *os.File, name string, start client.Starter, private bool) (stub.Store, error) {
	c, err := client.OpenAt(dir, name, start)
	if err != nil {
		return nil, err
	}
	c.PushEvery = pushEvery
	return &blockStore{c, private}, nil
}

// makePrivate makes the private pool in dir if there is none, in a process of
// its own: badger may die of a full disk.
func (p *poolsOf) makePrivate(dir *os.File, name string) error {
	err := unix.Fstatat(int(dir.Fd()), stub.PoolDir, new(unix.Stat_t), unix.AT_SYMLINK_NOFOLLOW)
	if err != unix.ENOENT {
		return err
	}
	return client.Run(p.make, dir, name)
}

// poolMaker is the hidden command that makes a private pool.
const poolMaker = "pool-maker"

// runPoolMaker makes the pool in the directory that its launcher has opened for
// it. It gets its name when it is complete.
func runPoolMaker([]string) error {
	closeInherited()
	err := makePool(client.PoolDir())
	client.Report(err)
	return err
}

func makePool(dir string) error {
	tmp := filepath.Join(dir, stub.PoolDir+".new")
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := blockstore.Create(tmp, privatePool); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, stub.PoolDir)); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Shared implements stub.Pools.
func (p *poolsOf) Shared() (stub.Store, error) {
	f, err := os.OpenFile(p.shared, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return openStore(f, p.shared, p.start, false)
}

// HasShared implements stub.Pools.
func (p *poolsOf) HasShared() bool { return p.shared != "" }

// blockStore is a pool as the union sees it.
type blockStore struct {
	c       *client.Client
	private bool
}

func (s *blockStore) ID() string { return s.c.UUID() }

func (s *blockStore) Create(d stub.Device) error {
	_, err := s.c.Create(blockstore.NewDevice{Name: d.Name, Size: d.Size, Origin: originOf(d.Origin), Use: useOf(d)})
	return err
}

func (s *blockStore) Snapshot(d stub.Device, of string) error {
	_, err := s.c.Create(blockstore.NewDevice{Name: d.Name, Of: of, Use: useOf(d)})
	return err
}

func useOf(d stub.Device) *blockstore.Use {
	return &blockstore.Use{Upper: d.Upper, Stub: d.Stub, Key: d.Key, State: d.State}
}

func originOf(o *stub.Origin) *blockstore.Origin {
	if o == nil {
		return nil
	}
	return &blockstore.Origin{Path: o.Path, Rel: o.Rel, Size: o.Size, Mtime: o.Mtime, Ino: o.Ino, Valid: o.Valid}
}

func (s *blockStore) Info(name string) (stub.Device, error) {
	d, err := s.c.Info(name)
	return s.device(d), err
}

func (s *blockStore) device(d blockstore.DeviceInfo) stub.Device {
	out := stub.Device{Name: d.Name, Size: d.Size, Mapped: d.Mapped * uint64(s.c.BlockSize())}
	if o := d.Origin; o != nil {
		out.Origin = &stub.Origin{Path: o.Path, Rel: o.Rel, Size: o.Size, Mtime: o.Mtime, Ino: o.Ino, Valid: o.Valid}
	}
	if u := d.Use; u != nil {
		out.Upper, out.Stub, out.Key, out.State = u.Upper, u.Stub, u.Key, u.State
	}
	return out
}

func (s *blockStore) Devices() ([]stub.Device, error) {
	list, err := s.c.Devices()
	var out []stub.Device
	for _, d := range list {
		if d.Use != nil {
			out = append(out, s.device(d))
		}
	}
	return out, err
}

func (s *blockStore) Open(name string, origin io.ReaderAt, write bool) (stub.Blocks, error) {
	if origin == nil {
		origin = nothing{}
	}
	open := s.c.VolumeToRead
	if write {
		open = s.c.Volume
	}
	d, err := open(name, origin)
	if err != nil {
		return nil, err
	}
	return &deviceBlocks{d}, nil
}

// nothing is the origin of devices that show none.
type nothing struct{}

func (nothing) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }

func (s *blockStore) SetState(name, key, state string) error { return s.c.SetState(name, key, state) }

func (s *blockStore) SetOrigin(name string, o stub.Origin) error {
	return s.c.SetOrigin(name, *originOf(&o))
}

func (s *blockStore) Delete(name string) error { return s.c.Delete(name) }

// Close also ends the process of a private pool, unless somebody else uses it:
// the upper may be about to be moved or removed.
func (s *blockStore) Close() error {
	if s.private {
		if unlock, err := s.c.Shutdown(); err == nil && unlock != nil {
			unlock()
		}
	}
	return s.c.Close()
}

// deviceBlocks is an open device as the union sees it.
type deviceBlocks struct{ d *client.Device }

func (b *deviceBlocks) Size() int64 { return b.d.Size() }

func (b *deviceBlocks) ReadAt(p []byte, off int64) (int, error)  { return b.d.ReadAt(p, off) }
func (b *deviceBlocks) WriteAt(p []byte, off int64) (int, error) { return b.d.WriteAt(p, off) }

func (b *deviceBlocks) OriginAlone(off, length int64) bool { return b.d.OriginAlone(off, length) }

func (b *deviceBlocks) Extend(size int64) error      { return b.d.Extend(size) }
func (b *deviceBlocks) Resize(size int64) error      { return b.d.Resize(size) }
func (b *deviceBlocks) Zero(off, length int64) error { return b.d.Zero(off, length, true) }
func (b *deviceBlocks) Provision(off, length int64) error {
	return b.d.Provision(background, off, length)
}

func (b *deviceBlocks) Layout(off, length int64) ([]stub.Stretch, error) {
	list, err := b.d.Layout(off, length)
	out := make([]stub.Stretch, len(list))
	for i, s := range list {
		out[i] = stub.Stretch{Length: s.Length, Kind: kinds[s.Kind], Block: s.Block}
	}
	return out, err
}

var kinds = map[volume.Kind]stub.Kind{volume.Zeros: stub.Zeros, volume.FromOrigin: stub.FromOrigin, volume.Data: stub.Data}

func (b *deviceBlocks) Flush() error { return b.d.Flush() }
func (b *deviceBlocks) LetGo() error { return b.d.LetGo() }
