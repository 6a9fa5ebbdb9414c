package volume

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/internal/errs"
)

// Service is a pool, for one user of it. Its calls may be made concurrently.
type Service interface {
	Leaf(id uint32, leaf uint64) (*blockstore.LeafMap, error)
	// Freed changes when blocks may have become exclusive.
	Freed() uint64
	// Reserve waits for space as the pool is told to.
	Reserve(ctx context.Context, n int) ([]blockstore.Grant, error)
	Return(blocks []uint64)
	Assign(id uint32, list []blockstore.Assignment) error
	Unmap(id uint32, from, count uint64) error
	SetZero(id uint32, from, count uint64) error
	Resize(id uint32, size int64) error
	// Flush assigns, and makes the device's mappings and data durable.
	Flush(id uint32, list []blockstore.Assignment) error
	// Data is the pool's data file.
	Data() blockstore.DataFile
}

// Volume is an open thin device. Its methods may be called concurrently.
type Volume struct {
	svc    Service
	data   blockstore.DataFile
	id     uint32
	bs     int64         // bytes of a block; immutable
	skip   bool          // block zeroing is off; immutable
	every  time.Duration // how long assignments may be pending; immutable
	origin *origin

	pushing sync.Mutex
	claims  claims
	io      sync.RWMutex // see Order in doc.go

	mu      sync.Mutex
	size    int64 // bytes
	sized   bool  // the pool does not know the size yet
	maps    leafCache
	changes uint64            // counts assignments and removals, begun and done
	pending map[uint64]uint64 // virtual block → data block, not yet assigned
	replace bool              // some pending block takes the place of another
	grants  []blockstore.Grant
	want    int   // how many blocks the next reservation asks for
	lost    error // changes were lost; the next Flush says so
	closed  bool
	timer   *time.Timer
	armed   bool // tick will come
	busy    bool // reserved blocks were used since the last one
}

// Config describes a device to New.
type Config struct {
	ID          uint32
	Size        int64 // bytes
	BlockSize   int64 // bytes
	SkipZeroing bool
	Origin      *blockstore.Origin // or nil
	// OriginFile is the external origin when the caller has it open; it
	// stays the caller's. Otherwise the file that Origin names is opened.
	OriginFile ReaderAt
	// PushEvery is how long assignments may be pending: what is pending is lost
	// with this process. 0: half a second.
	PushEvery time.Duration
}

const (
	pushInterval = 500 * time.Millisecond
	pushMany     = 2048 // pending assignments
	maxWant      = 256  // blocks reserved at a time
)

// New opens a device that svc has acquired.
func New(svc Service, c Config) (*Volume, error) {
	v := &Volume{svc: svc, data: svc.Data(), id: c.ID, bs: c.BlockSize, skip: c.SkipZeroing,
		size: c.Size, pending: map[uint64]uint64{}, want: 1}
	v.claims.init()
	if v.every = c.PushEvery; v.every == 0 {
		v.every = pushInterval
	}
	if c.Origin != nil {
		o, err := openOrigin(c.Origin, c.OriginFile)
		if err != nil {
			return nil, err
		}
		v.origin = o
	}
	return v, nil
}

// Size is the virtual size in bytes.
func (v *Volume) Size() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.size
}

// BlockSize is the size of a pool block in bytes.
func (v *Volume) BlockSize() int { return int(v.bs) }

// clip cuts a range at the end of the device.
func (v *Volume) clip(off, length int64) (int64, error) {
	size := v.Size()
	if off < 0 || length < 0 || off > size {
		return 0, errs.New(errs.Usage, "offset %d, length %d: beyond the device's %d bytes: %w", off, length, size, unix.EINVAL)
	}
	return min(length, size-off), nil
}

// Flush returns when all that was written before it is durable.
func (v *Volume) Flush() error { return v.push(true) }

// push tells the pool of pending assignments.
func (v *Volume) push(flush bool) error {
	v.pushing.Lock()
	defer v.pushing.Unlock()
	return v.pushLocked(flush)
}

// pushLocked is push; pushing is held, io is not.
func (v *Volume) pushLocked(flush bool) error {
	b, replace, err := v.takePending()
	if err != nil {
		return err
	}
	if replace {
		v.drain()
	}
	return v.send(b, flush)
}

// batch is what the pool is told at once.
type batch struct {
	size int64 // the new size in bytes, -1 when it is known
	list []blockstore.Assignment
}

// drain waits for the reads and writes that are running.
func (v *Volume) drain() {
	v.io.Lock()
	v.io.Unlock() //nolint:staticcheck // those that begin now see the new mappings
}

// takePending lists what is to be assigned; it stays pending until it is.
func (v *Volume) takePending() (b batch, replace bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.lost; err != nil {
		v.lost = nil
		return b, false, err
	}
	b = batch{-1, sortedAssignments(v.pending)}
	if v.sized {
		b.size, v.sized = v.size, false
	}
	replace, v.replace = v.replace, false
	if len(b.list) > 0 {
		v.changes++
	}
	return b, replace, nil
}

// send tells the pool of b, of the size first: a device that grows loses
// mappings that are left beyond its old end.
func (v *Volume) send(b batch, flush bool) (err error) {
	if b.size >= 0 {
		err = v.svc.Resize(v.id, b.size)
	}
	list := b.list
	switch {
	case err != nil:
		v.mu.Lock()
		v.sized = true
		v.mu.Unlock()
	case flush:
		err = v.svc.Flush(v.id, list)
	case len(list) > 0:
		err = v.svc.Assign(v.id, list)
	}
	if len(list) == 0 {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changes++
	for _, a := range list {
		delete(v.pending, a.Virtual) // what is exclusive is not assigned again
		if m := v.maps.get(a.Virtual / leafBlocks); m != nil {
			m.Entries[a.Virtual%leafBlocks] = blockstore.MappedTo(a.Data)
		}
	}
	if err != nil {
		// What the pool has of it is not known: ask it again.
		v.maps.clear()
	}
	return err
}

// tick pushes what has been pending for a while and gives back what is
// reserved and not used.
func (v *Volume) tick() {
	v.mu.Lock()
	busy := v.busy
	v.armed, v.busy = false, false
	if busy {
		v.armLocked()
	}
	v.mu.Unlock()
	if err := v.push(false); err != nil {
		v.fail(err)
	}
	if !busy {
		v.GiveBack()
	}
}

// fail keeps an error for the next Flush, as the page cache does.
func (v *Volume) fail(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lost = err
}

// Settle is blockstore.Owner's: everything written is assigned, and nothing
// is known to be exclusive.
func (v *Volume) Settle() error {
	v.pushing.Lock()
	defer v.pushing.Unlock()
	v.io.Lock()
	defer v.io.Unlock()
	b, _, err := v.takePending()
	if err == nil {
		err = v.send(b, false)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.maps.clear()
	if err != nil {
		v.lost = err // whoever wrote must hear it, not only who takes the snapshot
	}
	return err
}

// Drop is blockstore.Owner's: the pool has gone back to its last commit.
func (v *Volume) Drop() {
	v.io.Lock()
	defer v.io.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.maps.clear()
	v.changes++
	if len(v.pending) > 0 {
		v.lost = errs.New(errs.Failed, "changes were lost when a commit of the pool failed: %w", unix.EIO)
	}
	clear(v.pending)
	v.grants = nil
}

// GiveBack is blockstore.Owner's: reserved blocks go back.
func (v *Volume) GiveBack() {
	v.mu.Lock()
	grants := v.grants
	v.grants, v.want = nil, 1
	v.mu.Unlock()
	if len(grants) == 0 {
		return
	}
	blocks := make([]uint64, len(grants))
	for i, g := range grants {
		blocks[i] = g.Block
	}
	v.svc.Return(blocks)
}

// Close makes the device durable and lets go of it. The caller releases it.
func (v *Volume) Close() error { return v.end(true) }

// LetGo is Close without making anything durable: the pool does that in time.
func (v *Volume) LetGo() error { return v.end(false) }

func (v *Volume) end(flush bool) error {
	v.mu.Lock()
	v.closed = true
	if v.timer != nil {
		v.timer.Stop()
	}
	v.mu.Unlock()
	err := v.push(flush)
	v.GiveBack()
	v.Abandon()
	return err
}

// Abandon lets go of a volume that was only read.
func (v *Volume) Abandon() {
	if v.origin != nil {
		v.origin.close()
	}
}

// Extend makes the device at least size bytes long. What is new reads as
// zeros. The pool hears of it with the next assignments.
func (v *Volume) Extend(size int64) error {
	if size > blockstore.MaxDeviceSize {
		return errs.New(errs.Usage, "device size %d: must be at most 64 TiB: %w", size, unix.EFBIG)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if size > v.size {
		v.size, v.sized = size, true
		v.armLocked()
	}
	return nil
}

// Resize sets the size in bytes. What a smaller size cuts off reads as zeros
// when the device grows again.
func (v *Volume) Resize(size int64) error {
	from := uint64((size + v.bs - 1) / v.bs)
	v.claims.take(from, ^uint64(0))
	defer v.claims.drop(from)
	old := v.Size()
	if size < old {
		if err := v.cutTail(size, min(old, int64(from)*v.bs)); err != nil {
			return err
		}
	}
	v.pushing.Lock()
	defer v.pushing.Unlock()
	if err := v.pushLocked(false); err != nil {
		return err
	}
	v.io.Lock()
	defer v.io.Unlock()
	if err := v.svc.Resize(v.id, size); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.size, v.sized = size, false
	v.changes++
	v.maps.clear()
	if v.origin != nil {
		v.origin.valid = min(v.origin.valid, size)
	}
	return nil
}

// cutTail zeroes the rest of the block that the new end lies in. Where an
// origin shows, how far it is valid does that.
func (v *Volume) cutTail(from, to int64) error {
	if from >= to {
		return nil
	}
	m, err := v.lookup(uint64(from / v.bs))
	if err != nil || !m.HasData() {
		return err
	}
	return v.writeZeros(context.Background(), from, to-from)
}
