package fusefile

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/layerfs/layerfs/internal/errs"
)

const (
	fakeBlock = 64 << 10
	fakeTotal = 1 << 30
)

// fakePool keeps devices in memory, as sparsely as a pool would.
type fakePool struct {
	mu      sync.Mutex
	devices map[string]*fakeDevice
	nextID  uint32

	lookups atomic.Int64
	broken  atomic.Pointer[error] // if set, what List fails with
}

func newPool() *fakePool { return &fakePool{devices: map[string]*fakeDevice{}} }

// fakeDevice is at the same time the device in the pool and the open one.
type fakeDevice struct {
	pool *fakePool
	id   uint32

	mu                      sync.Mutex
	size                    int64
	blocks                  map[int64][]byte
	elsewhere, open, closed bool

	opens, closes, flushes atomic.Int64

	// hook, if set, is called before an operation, which fails with its error.
	hook atomic.Pointer[func(op string) error]
}

func (p *fakePool) add(name string, size int64) *fakeDevice {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nextID++
	d := &fakeDevice{pool: p, id: p.nextID, size: size, blocks: map[int64][]byte{}}
	p.devices[name] = d
	return d
}

func (p *fakePool) remove(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.devices, name)
}

func (p *fakePool) rename(from, to string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.devices[to] = p.devices[from]
	delete(p.devices, from)
}

func (p *fakePool) get(name string) (*fakeDevice, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.devices[name]
	if d == nil {
		return nil, errs.New(errs.NotFound, "no thin device %q: %w", name, syscall.ENODATA)
	}
	return d, nil
}

func (d *fakeDevice) entry(name string) Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return Entry{Name: name, ID: d.id, Size: d.size, Used: int64(len(d.blocks)) * fakeBlock}
}

func (p *fakePool) List() ([]Entry, error) {
	if err := p.broken.Load(); err != nil {
		return nil, *err
	}
	p.mu.Lock()
	devices := maps.Clone(p.devices)
	p.mu.Unlock()
	var list []Entry
	for name, d := range devices {
		list = append(list, d.entry(name))
	}
	return list, nil
}

func (p *fakePool) Lookup(name string) (Entry, error) {
	p.lookups.Add(1)
	d, err := p.get(name)
	if err != nil {
		return Entry{}, err
	}
	if err := d.before("lookup"); err != nil {
		return Entry{}, err
	}
	return d.entry(name), nil
}

func (p *fakePool) Open(name string) (Device, error) {
	d, err := p.get(name)
	if err != nil {
		return nil, err
	}
	if err := d.before("open"); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.elsewhere || d.open {
		return nil, errs.New(errs.Busy, "device %s is in use", name)
	}
	d.open, d.closed = true, false
	d.opens.Add(1)
	return d, nil
}

func (p *fakePool) BlockSize() int { return fakeBlock }

func (p *fakePool) Free() (total, available int64) {
	list, _ := p.List()
	available = fakeTotal
	for _, e := range list {
		available -= e.Used
	}
	return fakeTotal, available
}

// on has hook called before every operation.
func (d *fakeDevice) on(hook func(op string) error) { d.hook.Store(&hook) }

func (d *fakeDevice) before(op string) error {
	if h := d.hook.Load(); h != nil {
		return (*h)(op)
	}
	return nil
}

// setElsewhere says whether another process has the device open.
func (d *fakeDevice) setElsewhere(busy bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.elsewhere = busy
}

func (d *fakeDevice) grow(size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.size = size
}

func (d *fakeDevice) isOpen() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open
}

func (d *fakeDevice) mapped() []int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.blocks))
}

func (d *fakeDevice) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.size
}

// each calls do with the parts of a range that lie in one block each.
func (d *fakeDevice) each(off, length int64, do func(block, from, to, done int64)) {
	if !d.open || off < 0 || length < 0 || off+length > d.size {
		panic(fmt.Sprintf("%d+%d of %d, open %v", off, length, d.size, d.open))
	}
	for done := int64(0); done < length; {
		from := (off + done) % fakeBlock
		n := min(fakeBlock-from, length-done)
		do((off+done)/fakeBlock, from, from+n, done)
		done += n
	}
}

func (d *fakeDevice) ReadAt(p []byte, off int64) (int, error) {
	if err := d.before("read"); err != nil {
		if err == io.EOF {
			return len(p) / 2, err
		}
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.each(off, int64(len(p)), func(block, from, to, done int64) {
		if b := d.blocks[block]; b != nil {
			copy(p[done:], b[from:to])
		} else {
			clear(p[done : done+to-from])
		}
	})
	return len(p), nil
}

func (d *fakeDevice) WriteAt(p []byte, off int64) (int, error) {
	if err := d.before("write"); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.each(off, int64(len(p)), func(block, from, to, done int64) {
		if d.blocks[block] == nil {
			d.blocks[block] = make([]byte, fakeBlock)
		}
		copy(d.blocks[block][from:to], p[done:])
	})
	return len(p), nil
}

func (d *fakeDevice) Zero(off, length int64, mayUnmap bool) error {
	if err := d.before("zero"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.each(off, length, func(block, from, to, _ int64) {
		b := d.blocks[block]
		switch {
		case mayUnmap && (b == nil || to-from == fakeBlock):
			delete(d.blocks, block)
		case b == nil:
			d.blocks[block] = make([]byte, fakeBlock)
		default:
			clear(b[from:to])
		}
	})
	return nil
}

func (d *fakeDevice) Flush() error {
	d.flushes.Add(1)
	return d.before("flush")
}

func (d *fakeDevice) Extents(off, length int64) ([]Extent, error) {
	if err := d.before("extents"); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []Extent
	d.each(off, length, func(block, from, to, _ int64) {
		data := d.blocks[block] != nil
		if last := len(list) - 1; last >= 0 && list[last].Data == data {
			list[last].Length += to - from
		} else {
			list = append(list, Extent{to - from, data})
		}
	})
	return list, nil
}

func (d *fakeDevice) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.open {
		panic("closed twice")
	}
	d.open = false
	d.closes.Add(1)
	return nil
}

// patient is a device that waits for space until it is interrupted.
type patient struct {
	*fakeDevice
	waiting chan struct{}
}

func (d *patient) WriteAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	return 0, d.wait(ctx)
}

func (d *patient) ZeroContext(ctx context.Context, off, length int64, mayUnmap bool) error {
	return d.wait(ctx)
}

func (d *patient) wait(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("too early: %w", syscall.EINVAL)
	}
	d.waiting <- struct{}{}
	<-ctx.Done()
	return fmt.Errorf("waiting for space: %w", ctx.Err())
}

// patientPool opens all devices as patient ones.
type patientPool struct {
	*fakePool
	waiting chan struct{}
}

func (p *patientPool) Open(name string) (Device, error) {
	d, err := p.fakePool.Open(name)
	if err != nil {
		return nil, err
	}
	return &patient{d.(*fakeDevice), p.waiting}, nil
}
