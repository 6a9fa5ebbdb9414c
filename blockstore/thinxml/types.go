package thinxml

import (
	"math"

	"github.com/layerfs/layerfs/internal/errs"
)

// Version is the version of the metadata that today's tools and kernels write.
// Version 1 differs in nothing that the XML shows.
const Version = 2

// NeedsCheck is the bit of Superblock.Flags that says that the pool must be
// checked before anything is written to it (THIN_METADATA_NEEDS_CHECK_FLAG).
const NeedsCheck = 1

const (
	sectorSize = 512

	minBlockSize = 128     // sectors; DATA_DEV_BLOCK_SIZE_MIN_SECTORS, of which a block is a multiple
	maxBlockSize = 2097152 // sectors; DATA_DEV_BLOCK_SIZE_MAX_SECTORS

	maxDeviceID   = 1<<24 - 1
	maxDataBlocks = 1 << 40   // pack_block_time: 64 bits less those of the time
	maxMapTime    = 1<<24 - 1 // pack_block_time

	// maxText is how long a uuid and a def's name may be, in bytes.
	maxText = 64
)

// Superblock describes a pool.
type Superblock struct {
	UUID           string // at most 64 bytes of printable ASCII other than < & "
	Time           uint32 // how many snapshots have been made
	Transaction    uint64 // the transaction id of the pool's user
	Flags, Version uint32
	DataBlockSize  uint32 // 512-byte sectors
	DataBlocks     uint64 // how many data blocks the pool has
}

// Device describes a thin device.
type Device struct {
	ID           uint32
	MappedBlocks uint64
	Transaction  uint64 // the pool's when the device was made
	CreationTime uint32 // the pool's time when the device was made
	SnapTime     uint32 // the pool's time when it was last part of a snapshot
}

// Range maps Length virtual blocks of a device, from Origin on, to as many data
// blocks from Data on.
type Range struct {
	Origin, Data, Length uint64 // blocks
	Time                 uint32 // the pool's when the mapping was made
}

// continues reports whether r is the rest of the run that p begins.
func (r Range) continues(p Range) bool {
	return r.Origin == p.Origin+p.Length && r.Data == p.Data+p.Length && r.Time == p.Time
}

// maxBlocks is how many blocks fit below byte 2^63.
func (sb *Superblock) maxBlocks() uint64 {
	return math.MaxInt64 / (uint64(sb.DataBlockSize) * sectorSize)
}

func (sb *Superblock) check() error {
	if err := checkText("uuid", sb.UUID); err != nil {
		return err
	}
	if sb.Version != 1 && sb.Version != Version {
		return errs.New(errs.Corrupt, "version %d: only 1 and 2 are known", sb.Version)
	}
	if s := sb.DataBlockSize; s < minBlockSize || s > maxBlockSize || s%minBlockSize != 0 {
		return errs.New(errs.Corrupt, "data_block_size %d: must be a multiple of %d sectors from %d to %d", s, minBlockSize, minBlockSize, maxBlockSize)
	}
	if most := min(maxDataBlocks, sb.maxBlocks()); sb.DataBlocks > most {
		return errs.New(errs.Corrupt, "nr_data_blocks %d: a pool has at most %d blocks of %d sectors", sb.DataBlocks, most, sb.DataBlockSize)
	}
	return nil
}

func (sb *Superblock) checkDevice(d Device) error {
	if d.ID > maxDeviceID {
		return errs.New(errs.Corrupt, "dev_id %d: must be at most %d", d.ID, maxDeviceID)
	}
	if last := max(d.CreationTime, d.SnapTime); last > sb.Time {
		return errs.New(errs.Corrupt, "device %d: time %d is later than the pool's, %d", d.ID, last, sb.Time)
	}
	return nil
}

// progress is how far the mappings of a device, or of a def, have come.
type progress struct {
	next   uint64 // the first virtual block that may be mapped next
	mapped uint64 // blocks so far
}

// add checks r against the pool and against what came before it.
func (p *progress) add(sb *Superblock, r Range) error {
	switch {
	case r.Length == 0:
		return errs.New(errs.Corrupt, "a mapping of no blocks at origin block %d", r.Origin)
	case r.Data >= sb.DataBlocks || r.Length > sb.DataBlocks-r.Data:
		return errs.New(errs.Corrupt, "data blocks %d+%d: the pool has only %d", r.Data, r.Length, sb.DataBlocks)
	case r.Origin >= sb.maxBlocks() || r.Length > sb.maxBlocks()-r.Origin:
		return errs.New(errs.Corrupt, "origin blocks %d+%d: a device has at most %d blocks of %d sectors", r.Origin, r.Length, sb.maxBlocks(), sb.DataBlockSize)
	case r.Origin < p.next:
		return errs.New(errs.Corrupt, "origin block %d after %d: mappings must be in ascending order without overlap", r.Origin, p.next-1)
	case r.Time > min(sb.Time, maxMapTime):
		return errs.New(errs.Corrupt, "origin block %d: time %d is later than the pool's, %d", r.Origin, r.Time, min(sb.Time, maxMapTime))
	}
	p.next = r.Origin + r.Length
	p.mapped += r.Length
	return nil
}

// finish checks at the end of d that it has what it promised.
func (p *progress) finish(d Device) error {
	if p.mapped != d.MappedBlocks {
		return errs.New(errs.Corrupt, "device %d: mapped_blocks is %d, but %d blocks are mapped", d.ID, d.MappedBlocks, p.mapped)
	}
	return nil
}

// checkText accepts what reads the same with every parser, whatever the
// encoding of the document.
func checkText(attr, s string) error {
	if len(s) > maxText {
		return errs.New(errs.Corrupt, "%s has %d bytes: must be at most %d", attr, len(s), maxText)
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '<' || c == '&' || c == '"' {
			return errs.New(errs.Corrupt, "%s %q: %q is not allowed, only printable ASCII without < & \"", attr, s, c)
		}
	}
	return nil
}
