package blockstore

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// Reserve promises up to n data blocks, at least one, to owner, who writes
// them whole and then assigns them. When there is none, it first waits for
// those that are about to become free, then as the pool was told: it answers
// ENOSPC at once, or after the no-space timeout, or when ctx ends.
func (p *Pool) Reserve(ctx context.Context, owner Owner, n int) ([]Grant, error) {
	var deadline <-chan time.Time
	for asked := false; ; {
		p.mu.Lock()
		if err := p.allocationErrorLocked(); err != nil {
			p.mu.Unlock()
			return nil, err
		}
		blocks := p.takeLocked(owner, n)
		coming := p.open.frees() || p.sealed != nil || len(p.reclaim) > 0
		punching := p.refs.free() > 0 && p.punching[1] != 0
		p.mu.Unlock()
		if len(blocks) > 0 {
			return p.grants(blocks), nil
		}
		switch {
		case coming:
			// Better than dm-thin, where a discard wakes nobody until
			// something else commits.
			if err := p.Commit(); err != nil {
				return nil, err
			}
			p.waitReclaimed()
			continue
		case punching:
			p.wait(func() bool { return p.punching[1] == 0 })
			continue
		case p.extend(true):
			continue
		case !asked:
			asked = true
			p.askBack()
			continue
		}
		if deadline == nil {
			deadline = p.noSpaceDeadline()
		}
		if err := p.waitSpace(ctx, deadline); err != nil {
			return nil, err
		}
		asked = false
	}
}

// frees reports whether blocks become free when t is durable.
func (t *transaction) frees() bool { return len(t.lostBlocks)+len(t.lostNodes) > 0 }

// allocationErrorLocked says why no block can be given at all.
func (p *Pool) allocationErrorLocked() error {
	switch {
	case p.closed:
		return errs.New(errs.Busy, "the pool is being closed: %w", unix.ESHUTDOWN)
	case p.mode == Failed:
		return errFailed
	case p.mode == ReadOnly:
		return errs.New(errs.Corrupt, "the pool is read-only: %w: %w", p.cause, unix.EIO)
	}
	return nil
}

// takeLocked reserves free blocks, as many as there are up to n.
func (p *Pool) takeLocked(owner Owner, n int) []uint64 {
	n = min(n, p.hostBlocksLocked())
	blocks := p.refs.take(n, func(b uint64) bool { return b < p.punching[0] || b >= p.punching[1] })
	for _, b := range blocks {
		p.reserved[b] = owner
		p.punch.remove(b)
	}
	p.hostLeft -= int64(len(blocks)) * p.blockSize
	if len(blocks) > 0 {
		p.spaceChangedLocked()
	}
	return blocks
}

// hostFloor is what data leaves free on its file system for the index and
// for whoever else lives there.
const hostFloor = 96 << 20

// hostBlocksLocked is how many blocks the file system of the data file can
// still take; the answer may be a moment old.
func (p *Pool) hostBlocksLocked() int {
	if time.Since(p.hostSeen) > 100*time.Millisecond || p.hostLeft < 0 {
		free, err := p.data.HostFree()
		if err != nil {
			return 0
		}
		p.hostSeen, p.hostLeft = time.Now(), free-p.hostReserve()
	}
	return int(max(0, p.hostLeft) / p.blockSize)
}

// hostReserve is smaller for private pools, whose index is small too.
func (p *Pool) hostReserve() int64 {
	if p.sb.Options.Small {
		return hostFloor / 4
	}
	return hostFloor
}

// grants waits for readers that may have looked one of the blocks up when it
// was somebody's, and finds out which blocks are zeros.
func (p *Pool) grants(blocks []uint64) []Grant {
	p.reading.Lock()
	p.reading.Unlock() //nolint:staticcheck // those who began before have ended, the others cannot find the blocks
	out := make([]Grant, len(blocks))
	for i := 0; i < len(blocks); {
		run := 1
		for i+run < len(blocks) && blocks[i+run] == blocks[i]+uint64(run) {
			run++
		}
		grantRun(p.data, out[i:i+run], blocks[i:i+run], p.blockSize)
		i += run
	}
	return out
}

// grantRun fills out for consecutive blocks of the given size.
func grantRun(file DataFile, out []Grant, blocks []uint64, size int64) {
	end := int64(blocks[len(blocks)-1]+1) * size
	data := int64(-1)
	for i, b := range blocks {
		if data < int64(b)*size {
			data = file.NextData(int64(b)*size, end)
		}
		out[i] = Grant{b, data >= int64(b+1)*size}
	}
}

// Return gives reserved blocks back; they were never assigned.
func (p *Pool) Return(owner Owner, blocks []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range blocks {
		if p.reserved[b] == owner {
			p.unreserveLocked(b)
		}
	}
	p.spaceChangedLocked()
	p.broadcastLocked() // there may be something to punch
}

// ReturnAll gives everything back that is reserved for owner, who has gone.
func (p *Pool) ReturnAll(owner Owner) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for b, o := range p.reserved {
		if o == owner {
			p.unreserveLocked(b)
		}
	}
	p.spaceChangedLocked()
	p.broadcastLocked() // there may be something to punch
}

func (p *Pool) unreserveLocked(b uint64) {
	delete(p.reserved, b)
	if p.refs.dec(b) && !p.noPunch && !p.sb.Options.NoDiscardPassdown {
		p.punch.add(b) // it may have been written
	}
}

// Adopt reserves the given blocks for an owner that had written them under a
// pool process that died. It is all or nothing, and must come before the
// first Reserve of this process: nobody else can have had the blocks since.
func (p *Pool) Adopt(owner Owner, blocks []uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range blocks {
		if b >= p.refs.n || p.refs.count(b) != 0 {
			return errs.New(errs.Failed, "data block %d was given to somebody else: %w", b, unix.EIO)
		}
	}
	for _, b := range blocks {
		p.refs.inc(b)
		p.reserved[b] = owner
		p.punch.remove(b)
	}
	p.spaceChangedLocked()
	return nil
}

// askBack has all who hold reserved blocks return what they do not need.
func (p *Pool) askBack() {
	p.mu.Lock()
	owners := map[Owner]struct{}{}
	for _, o := range p.reserved {
		owners[o] = struct{}{}
	}
	p.mu.Unlock()
	for o := range owners {
		o.GiveBack()
	}
}

func (p *Pool) noSpaceDeadline() <-chan time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.sb.Options.NoSpaceTimeout; t > 0 {
		return time.After(t)
	}
	return nil
}

// hostPoll is how often writers that wait look whether the host has space.
const hostPoll = 200 * time.Millisecond

// waitSpace waits for a change that may bring space.
func (p *Pool) waitSpace(ctx context.Context, deadline <-chan time.Time) error {
	p.mu.Lock()
	if p.mode == ReadWrite {
		p.setModeLocked(OutOfDataSpace, errNoSpace)
	}
	if p.sb.Options.ErrorIfNoSpace || p.full {
		p.mu.Unlock()
		return errNoSpace
	}
	p.waiters++
	ch := p.changed
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.waiters--
		p.mu.Unlock()
	}()
	select {
	case <-ch:
		return nil
	case <-time.After(hostPoll):
		return nil
	case <-ctx.Done():
		return unix.EINTR
	case <-deadline:
		p.mu.Lock()
		p.full = true // dm-thin flips to error_if_no_space here
		p.mu.Unlock()
		return errNoSpace
	}
}

// availableLocked is how many blocks can be given out: those free in the
// pool, if the host has space for them.
func (p *Pool) availableLocked() uint64 {
	return min(p.refs.free(), uint64(p.hostBlocksLocked()))
}

// usedLocked counts data blocks that devices map, or will give up soon.
func (p *Pool) usedLocked() uint64 { return p.refs.used - uint64(len(p.reserved)) }

// spaceChangedLocked follows the free space: out of the mode without space
// when there is some, and over the low-water mark in either direction.
func (p *Pool) spaceChangedLocked() {
	free := p.refs.free()
	if free > 0 && p.hostBlocksLocked() > 0 {
		if p.mode == OutOfDataSpace {
			p.setModeLocked(ReadWrite, nil)
		}
		p.full = false
	}
	if low := p.refs.n-p.usedLocked() <= p.sb.Options.LowWater; low != p.low {
		p.low = low
		p.broadcastLocked()
	}
	if p.extendedLocked(p.usedLocked()) > p.sb.Blocks && !p.extending && !p.closed {
		p.extending = true
		p.busy.Go(func() { p.extend(false) })
	}
}

func (p *Pool) setModeLocked(m Mode, cause error) {
	p.mode, p.cause = m, cause
	p.broadcastLocked()
}

// minFreeLocked is Docker's check before a device is made.
func (p *Pool) minFreeLocked() error {
	if p.sb.Options.MinFree == 0 {
		return nil
	}
	free, least := p.availableLocked(), max(1, p.sb.Blocks*uint64(p.sb.Options.MinFree)/100)
	if free < least {
		return errs.New(errs.NoSpace, "Thin Pool has %d free data blocks which is less than minimum required %d free data blocks. Create more free space in thin pool or use dm.min_free_space option to change behavior", free, least)
	}
	return nil
}

// Resize grows the pool to size bytes, rounded down to whole blocks.
func (p *Pool) Resize(size int64) error {
	p.mu.Lock()
	have, bs := p.sb.Blocks, p.blockSize
	err := p.messagesLocked()
	p.mu.Unlock()
	if err != nil {
		return err
	}
	if blocks := uint64(size / bs); size < 0 || blocks < have {
		return errs.New(errs.Usage, "the pool has %d blocks of %d bytes: it cannot shrink to %d bytes", have, bs, size)
	} else if blocks > maxBlocks {
		return errs.New(errs.Usage, "data size %d: a pool has at most %d blocks", size, uint64(maxBlocks))
	}
	p.growing.Lock()
	defer p.growing.Unlock()
	if err := p.grow(uint64(size / bs)); err != nil {
		return err
	}
	return p.Commit()
}

// grow makes the data file longer before the superblock says so. growing is
// held; a pool that is that large already stays as it is.
func (p *Pool) grow(blocks uint64) error {
	p.mu.Lock()
	have := p.sb.Blocks
	p.mu.Unlock()
	if blocks <= have {
		return nil
	}
	if err := p.lengthen(int64(blocks) * p.blockSize); err != nil {
		return fmt.Errorf("growing the data file: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sb.Blocks = blocks
	p.refs.resize(blocks)
	p.dirtyLocked()
	p.spaceChangedLocked()
	p.broadcastLocked()
	return nil
}

func (p *Pool) lengthen(size int64) error {
	have, err := p.data.Size()
	if err != nil || have >= size {
		return err
	}
	return p.data.Resize(size)
}

// extendedLocked is the size, in blocks, that autoextend gives a pool with
// used blocks in use, as lvmthin(7): it grows by a percentage of the size it
// has until the use is below the threshold, within the limit and what the
// host has.
func (p *Pool) extendedLocked(used uint64) uint64 {
	o := &p.sb.Options
	blocks := p.sb.Blocks
	if !o.autoextends() || p.mode >= ReadOnly || used*100 < uint64(o.AutoextendAt)*blocks {
		return blocks
	}
	limit := uint64(maxBlocks)
	if o.MaxSize > 0 {
		limit = min(limit, uint64(o.MaxSize)/uint64(o.BlockSize))
	}
	limit = min(limit, used+uint64(p.hostBlocksLocked()))
	for used*100 >= uint64(o.AutoextendAt)*blocks && blocks < limit {
		blocks = min(limit, blocks+max(1, blocks*uint64(o.AutoextendBy)/100))
	}
	return blocks
}

// extend grows the pool when that is due and reports whether it did. With
// full set there is no free block left, so what is only reserved counts too.
func (p *Pool) extend(full bool) bool {
	p.growing.Lock()
	defer p.growing.Unlock()
	p.mu.Lock()
	p.extending = false
	used := p.usedLocked()
	if full && p.refs.free() == 0 {
		used = p.refs.used
	}
	have, blocks := p.sb.Blocks, p.extendedLocked(used)
	p.mu.Unlock()
	return blocks > have && p.grow(blocks) == nil
}
