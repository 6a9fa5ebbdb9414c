package fusefile

import "context"

// Devices are the block devices of a pool. All methods may be called at any
// time from any goroutine. Errors wrap the errno that callers of the file
// system are to see; errs.NotFound means ENOENT.
type Devices interface {
	// List returns all devices, in any order.
	List() ([]Entry, error)
	// Lookup returns the device that is called name at present.
	Lookup(name string) (Entry, error)
	// Open opens the device called name for this process alone; the error is
	// EBUSY when another one has it open. It is not called again before the
	// device is closed.
	Open(name string) (Device, error)
	// BlockSize is the size of the pool's blocks, in bytes.
	BlockSize() int
	// Free returns the size of the pool and what can still be allocated in it,
	// in bytes.
	Free() (total, available int64)
}

// Entry describes a device.
type Entry struct {
	Name string // without a slash
	ID   uint32 // never that of two devices at once
	Size int64  // bytes
	Used int64  // bytes that are mapped
}

// Device is an open block device. All methods but Close may be called at the
// same time. Ranges are within the device, and not aligned to anything.
type Device interface {
	// Size is the size in bytes. It may grow while the device is open.
	Size() int64
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Zero makes a range read as zeros, ragged edges too. mayUnmap allows to
	// unmap the whole blocks inside.
	Zero(off, length int64, mayUnmap bool) error
	// Flush makes durable what was written before.
	Flush() error
	// Extents returns consecutive extents that cover the range.
	Extents(off, length int64) ([]Extent, error)
	Close() error
}

// Interruptible is what a Device can be besides, whose changes may have to wait
// for space: they end with ctx.Err() when ctx is done before there is any.
type Interruptible interface {
	WriteAtContext(ctx context.Context, p []byte, off int64) (int, error)
	ZeroContext(ctx context.Context, off, length int64, mayUnmap bool) error
}

// Extent is a part of a device: data, or a hole that reads as zeros.
type Extent struct {
	Length int64 // bytes
	Data   bool
}

// callContext is done when the kernel interrupts a request. Unlike those of
// package context it costs no goroutine and no timer.
type callContext struct {
	context.Context
	cancel <-chan struct{}
}

func during(cancel <-chan struct{}) context.Context {
	return callContext{context.Background(), cancel}
}

func (c callContext) Done() <-chan struct{} { return c.cancel }

func (c callContext) Err() error {
	select {
	case <-c.cancel:
		return context.Canceled
	default:
		return nil
	}
}

// writeAt writes to d until the request is interrupted, if d can do that.
func writeAt(d Device, cancel <-chan struct{}, p []byte, off int64) (int, error) {
	if i, ok := d.(Interruptible); ok {
		return i.WriteAtContext(during(cancel), p, off)
	}
	return d.WriteAt(p, off)
}

// zero zeroes a range of d until the request is interrupted, if d can do that.
func zero(d Device, cancel <-chan struct{}, off, length int64, mayUnmap bool) error {
	if i, ok := d.(Interruptible); ok {
		return i.ZeroContext(during(cancel), off, length, mayUnmap)
	}
	return d.Zero(off, length, mayUnmap)
}
