package blockstore

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// Limits, all of them dm-thin's except the size of a device, which dm keeps
// outside the pool.
const (
	SectorSize    = 512
	MinBlockSize  = 64 << 10 // bytes; block sizes are multiples of it
	MaxBlockSize  = 1 << 30  // bytes
	MaxDeviceID   = 1<<24 - 1
	MinDeviceSize = 1 << 20  // bytes, of a device made by name
	MaxDeviceSize = 64 << 40 // bytes
	maxBlocks     = 1<<32 - 1
	fanout        = 256
)

// LeafBlocks is how many consecutive virtual blocks one leaf of a device's
// tree maps, and one Leaf answers for.
const LeafBlocks = fanout

// Mapping says where a virtual block lives, as a user of the device sees it.
// The zero value is a block that was never written.
type Mapping uint64

const (
	mapped    Mapping = 1 << 63
	zeroes    Mapping = 1 << 62
	exclusive Mapping = 1 << 61
	blockMask         = 1<<40 - 1
)

// MappedTo is the mapping to a data block that nothing else maps.
func MappedTo(block uint64) Mapping { return mapped | exclusive | Mapping(block) }

// ZeroMapping reads as zeros without a data block, also where the device has
// an external origin.
const ZeroMapping = mapped | zeroes

// Mapped reports whether the block was written, or made to read as zeros.
func (m Mapping) Mapped() bool { return m&mapped != 0 }

// Zero reports whether the block reads as zeros without a data block.
func (m Mapping) Zero() bool { return m&zeroes != 0 }

// HasData reports whether a data block answers for the virtual block.
func (m Mapping) HasData() bool { return m&(mapped|zeroes) == mapped }

// Exclusive reports whether the data block may be written in place.
func (m Mapping) Exclusive() bool { return m&exclusive != 0 }

// Shared is the same mapping, not to be written in place.
func (m Mapping) Shared() Mapping { return m &^ exclusive }

// Block is the data block.
func (m Mapping) Block() uint64 { return uint64(m & blockMask) }

// Assignment maps the virtual block Virtual to the reserved data block Data.
type Assignment struct{ Virtual, Data uint64 }

// Grant is a data block reserved for a user of the pool.
type Grant struct {
	Block uint64
	Zero  bool // the block is known to read as zeros
}

// Options are what a pool is made with. The zero value of a field is its
// default; see `layerfs pool create`.
type Options struct {
	DataSize          int64         `json:"data_size"`            // bytes; 100 GiB
	BlockSize         int           `json:"block_size"`           // bytes; 64 KiB
	LowWater          uint64        `json:"low_water"`            // blocks; LowWaterDefault means a tenth
	ErrorIfNoSpace    bool          `json:"error_if_no_space"`    // instead of waiting
	NoSpaceTimeout    time.Duration `json:"no_space_timeout"`     // 0 waits for ever; 60 s is the command line's default
	SkipZeroing       bool          `json:"skip_block_zeroing"`   // partly written new blocks keep what was there
	NoDiscardPassdown bool          `json:"no_discard_passdown"`  // freed blocks keep their space in the data file
	AutoextendAt      int           `json:"autoextend_threshold"` // percent used; 0 and 100: never
	AutoextendBy      int           `json:"autoextend_percent"`   // of the current size
	MaxSize           int64         `json:"max_size"`             // bytes; 0: no limit to autoextend
	MinFree           int           `json:"min_free_space"`       // percent of blocks that creating a device leaves free
	Small             bool          `json:"small"`                // a private pool: small memtables, no ballast
}

// LowWaterDefault asks for a low-water mark of a tenth of the pool.
const LowWaterDefault = ^uint64(0)

func (o *Options) check() error {
	if o.BlockSize == 0 {
		o.BlockSize = MinBlockSize
	}
	if o.DataSize == 0 {
		o.DataSize = 100 << 30
	}
	if o.BlockSize < MinBlockSize || o.BlockSize > MaxBlockSize || o.BlockSize%MinBlockSize != 0 {
		return errs.New(errs.Usage, "block size %d: must be a multiple of 64K, from 64K to 1G", o.BlockSize)
	}
	blocks := uint64(o.DataSize) / uint64(o.BlockSize)
	if o.DataSize < 0 || blocks == 0 || blocks > maxBlocks {
		return errs.New(errs.Usage, "data size %d: must be 1 to %d blocks of %d bytes", o.DataSize, uint64(maxBlocks), o.BlockSize)
	}
	if o.LowWater == LowWaterDefault {
		o.LowWater = blocks / 10
	}
	if o.AutoextendAt != 0 && (o.AutoextendAt < 50 || o.AutoextendAt > 100) {
		return errs.New(errs.Usage, "autoextend threshold %d%%: must be 50%% to 100%%, 100%% is off", o.AutoextendAt)
	}
	if o.AutoextendBy < 0 || o.autoextends() && o.AutoextendBy == 0 {
		return errs.New(errs.Usage, "autoextend percent %d%%: must be more than 0%%", o.AutoextendBy)
	}
	if o.MinFree < 0 || o.MinFree > 99 {
		return errs.New(errs.Usage, "minimum free space %d%%: must be 0%% to 99%%", o.MinFree)
	}
	if o.NoSpaceTimeout < 0 {
		return errs.New(errs.Usage, "no-space timeout %s: must not be negative", o.NoSpaceTimeout)
	}
	return nil
}

func (o *Options) autoextends() bool { return o.AutoextendAt > 0 && o.AutoextendAt < 100 }

// Mode is what a pool answers to, as dm-thin's pool_mode.
type Mode int

const (
	ReadWrite      Mode = iota
	OutOfDataSpace      // reads, writes in place, discards and messages go on
	ReadOnly            // metadata does not change any more
	Failed              // nothing is answered
)

// String is the word of dm-thin's status line.
func (m Mode) String() string {
	return [...]string{"rw", "out_of_data_space", "ro", "Fail"}[m]
}

// Origin is the external origin of a device: a file that answers for every
// block that the device does not map.
type Origin struct {
	Path  string `json:"path"`          // where it was when the device was made
	Rel   string `json:"rel,omitempty"` // of a file in a branch: its path there
	Size  int64  `json:"size"`          // bytes
	Mtime int64  `json:"mtime"`         // nanoseconds since 1970
	Ino   uint64 `json:"ino"`           // a hint only
	Valid int64  `json:"valid"`         // bytes of the origin that still show through
}

// Use says which file of a union a device holds the blocks of. The pool keeps
// it and makes nothing of it.
type Use struct {
	Upper string `json:"upper"`           // the random id of the upper that the file is in
	Stub  string `json:"stub"`            // what tells the inode there from all others
	Key   string `json:"key"`             // random; who does not know it has not read the stub
	State string `json:"state,omitempty"` // Creating, Unlinking, or empty: the file is there
}

// States of a Use in which the file may or may not be there after a crash.
const (
	Creating  = "creating"
	Unlinking = "unlinking"
)

// DeviceInfo describes a thin device.
type DeviceInfo struct {
	ID        uint32  `json:"id"`
	Name      string  `json:"name"`
	Size      int64   `json:"size"`      // bytes
	Mapped    uint64  `json:"mapped"`    // blocks
	Exclusive uint64  `json:"exclusive"` // blocks that no other device maps
	Highest   int64   `json:"highest"`   // the highest mapped virtual block, -1 without one
	Parent    string  `json:"parent"`    // the device it is a snapshot of, as it was called then
	Txid      uint64  `json:"transaction"`
	Active    bool    `json:"active"` // somebody has it open
	Origin    *Origin `json:"origin,omitempty"`
	Use       *Use    `json:"use,omitempty"`
}

// The errors of a pool carry the errno that dm-thin gives.
var (
	errNoData   = errs.New(errs.NotFound, "no such thin device: %w", unix.ENODATA)
	errNoSpace  = errs.New(errs.NoSpace, "the pool is out of data space: %w", unix.ENOSPC)
	errFailed   = errs.New(errs.Corrupt, "the pool has failed: %w", unix.EIO)
	errLost     = errs.New(errs.Failed, "changes of this device were lost when a commit failed: %w", unix.EIO)
	errReadOnly = errs.New(errs.Corrupt, "unable to service pool target messages in READ_ONLY or FAIL mode: %w", unix.EOPNOTSUPP)
)
