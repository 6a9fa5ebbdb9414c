package stub

import (
	"io"
	"os"
)

// Origin is the lower file that a device shows where it has no block.
type Origin struct {
	Path  string // where it was, absolute
	Rel   string // its path in its branch
	Size  int64  // bytes
	Mtime int64  // nanoseconds since 1970
	Ino   uint64 // a hint only
	Valid int64  // bytes of it that show
}

// States of a device whose file may or may not be there after a crash.
const (
	Creating  = "creating"
	Unlinking = "unlinking"
)

// Device is the record of a device.
type Device struct {
	Name   string
	Size   int64   // bytes
	Mapped uint64  // bytes of blocks that were written
	Origin *Origin // nil without one
	Upper  string  // the id of the upper that its stub is in
	Stub   string  // the Inode of its stub
	Key    string
	State  string // Creating, Unlinking or ""
}

// Kind is what a Stretch of a file is.
type Kind uint8

// Zeros, what the origin has there, or blocks of the pool.
const (
	Zeros Kind = iota
	FromOrigin
	Data
)

// Stretch is a part of a file that is all of one kind.
type Stretch struct {
	Length int64 // bytes
	Kind   Kind
	Block  uint64 // of Data: the first data block of the pool
}

// Blocks is the open device of one file. Its methods may be called concurrently.
type Blocks interface {
	Size() int64 // bytes
	ReadAt(p []byte, off int64) (int, error)
	// OriginAlone reports whether a range is known to be what the origin has there.
	OriginAlone(off, length int64) bool
	// WriteAt writes below the size only.
	WriteAt(p []byte, off int64) (int, error)
	// Extend makes the file at least size bytes long.
	Extend(size int64) error
	// Resize sets the size. What is cut off never shows again.
	Resize(size int64) error
	// Zero makes a range read as zeros.
	Zero(off, length int64) error
	// Provision gives all blocks of a range their space.
	Provision(off, length int64) error
	// Layout says where the content of a range is, which ends at the size at most.
	Layout(off, length int64) ([]Stretch, error)
	// Flush makes all that was written before durable.
	Flush() error
	// LetGo ends the use; what was written becomes durable in time.
	LetGo() error
}

// Store is an open pool. Its methods may be called concurrently.
type Store interface {
	ID() string
	// Create makes a device, durably; its Mapped counts for nothing.
	Create(d Device) error
	// Snapshot makes the device d with the content that the device of has,
	// durably; the size and the origin of d count for nothing.
	Snapshot(d Device, of string) error
	Info(name string) (Device, error)
	// Devices lists those that belong to files.
	Devices() ([]Device, error)
	// Open opens a device whose origin is that reader, nil without one: alone, to
	// change it, or with others, to read it.
	Open(name string, origin io.ReaderAt, write bool) (Blocks, error)
	SetState(name, key, state string) error
	SetOrigin(name string, o Origin) error
	// Delete removes a device that nobody has open.
	Delete(name string) error
	Close() error
}

// Pools opens stores.
type Pools interface {
	// Private opens the pool in the directory called name of dir, and makes it
	// if that is asked for and it is not there.
	Private(dir *os.File, name string, make bool) (Store, error)
	// Shared opens the pool that the mount was given; it is not to be asked
	// for one that has none.
	Shared() (Store, error)
	// HasShared says whether new files go to the shared pool.
	HasShared() bool
}
