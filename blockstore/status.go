package blockstore

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// Status is what a pool says of itself.
type Status struct {
	UUID         string  `json:"uuid"`
	Options      Options `json:"options"`
	BlockSize    int64   `json:"block_size"`  // bytes
	Blocks       uint64  `json:"blocks"`      // data blocks in all
	Used         uint64  `json:"used"`        // blocks that devices map
	Available    uint64  `json:"available"`   // blocks: free in the pool and on the host
	Pending      uint64  `json:"pending"`     // freed blocks whose space is yet to be given back
	Virtual      int64   `json:"virtual"`     // bytes: the sizes of all devices together
	IndexBytes   int64   `json:"index_bytes"` // on the disk
	HostFree     int64   `json:"host_free"`   // bytes the data file's file system has
	Devices      int     `json:"devices"`     //
	Txid         uint64  `json:"transaction_id"`
	Seq          uint64  `json:"seq"`  // commits since the pool was made
	Held         *uint64 `json:"held"` // the transaction id of the metadata snapshot
	Mode         string  `json:"mode"`
	Cause        string  `json:"cause,omitempty"`   // of a mode that is not rw
	ErrorNoSpace bool    `json:"error_if_no_space"` // as it is now
	NeedsCheck   bool    `json:"needs_check"`
	Exported     bool    `json:"exported"`
	LowWater     bool    `json:"low_water_reached"`
	Waiters      int     `json:"waiting_writers"`
}

// Status describes the pool.
func (p *Pool) Status() Status {
	indexBytes := p.idx.bytes()
	host, _ := p.data.HostFree()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{
		UUID: p.sb.UUID, Options: p.sb.Options, BlockSize: p.blockSize,
		Blocks: p.sb.Blocks, Used: p.usedLocked(), Available: p.availableLocked(), Pending: uint64(p.punch.n),
		IndexBytes: indexBytes, HostFree: host, Devices: len(p.devs),
		Txid: p.sb.Txid, Seq: p.durable, Mode: p.mode.String(), ErrorNoSpace: p.sb.Options.ErrorIfNoSpace || p.full,
		NeedsCheck: p.sb.NeedsCheck, Exported: p.sb.Exported, LowWater: p.low, Waiters: p.waiters,
	}
	if p.cause != nil {
		s.Cause = p.cause.Error()
	}
	if h := p.sb.Held; h != nil {
		s.Held = &h.Txid
	}
	for _, d := range p.devs {
		s.Virtual += d.rec.Size
	}
	return s
}

// metadataBlock is dm-thin's: the unit of the metadata figures.
const metadataBlock = 4096

// MetadataTotal is how many bytes the index could grow to: what it has and
// what the host has left.
func (s *Status) MetadataTotal() int64 { return s.IndexBytes + s.HostFree }

// DM is the status line of the kernel's thin-pool target, with the device's
// start and length in sectors in front as dmsetup prints them.
func (s *Status) DM() string {
	head := fmt.Sprintf("0 %d thin-pool ", s.Blocks*uint64(s.BlockSize/SectorSize))
	if s.Mode == Failed.String() {
		return head + "Fail"
	}
	held, passdown, noSpace, check := "-", "discard_passdown", "queue_if_no_space", "-"
	if s.Held != nil {
		held = fmt.Sprint(*s.Held)
	}
	if s.Options.NoDiscardPassdown {
		passdown = "no_discard_passdown"
	}
	if s.ErrorNoSpace {
		noSpace = "error_if_no_space"
	}
	if s.NeedsCheck {
		check = "needs_check"
	}
	total := s.MetadataTotal() / metadataBlock
	return head + fmt.Sprintf("%d %d/%d %d/%d %s %s %s %s %s %d", s.Txid, (s.IndexBytes+metadataBlock-1)/metadataBlock, total,
		s.Used, s.Blocks, held, s.Mode, passdown, noSpace, check, min(1024, total/4))
}

// Event is something to wait for.
type Event string

const (
	LowWaterEvent   Event = "low-water"    // free space is at or below the mark
	OutOfSpaceEvent Event = "out-of-space" // a writer found no block
	OKEvent         Event = "ok"           // reads and writes go on, and there is space above the mark
)

func (p *Pool) holdsLocked(e Event) bool {
	switch e {
	case LowWaterEvent:
		return p.low
	case OutOfSpaceEvent:
		return p.mode == OutOfDataSpace
	}
	return p.mode == ReadWrite && !p.low
}

// Wait returns when the event holds; at once when it does already, because a
// mark that was crossed before anybody waited must not be missed.
func (p *Pool) Wait(ctx context.Context, e Event) error {
	if e != LowWaterEvent && e != OutOfSpaceEvent && e != OKEvent {
		return errs.New(errs.Usage, "event %q: must be low-water, out-of-space or ok", string(e))
	}
	for {
		p.mu.Lock()
		ok, closed, ch := p.holdsLocked(e), p.closed, p.changed
		p.mu.Unlock()
		switch {
		case ok:
			return nil
		case closed:
			return errs.New(errs.Failed, "the pool was closed: %w", unix.ESHUTDOWN)
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Watch calls tell with Durable and Freed now and after every change of the
// pool's state, until ctx ends.
func (p *Pool) Watch(ctx context.Context, tell func(durable, freed uint64)) {
	for {
		p.mu.Lock()
		durable, freed, ch := p.durable, p.freed, p.changed
		p.mu.Unlock()
		tell(durable, freed)
		select {
		case <-ch:
		case <-ctx.Done():
			return
		}
	}
}
