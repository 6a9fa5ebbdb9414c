package blockstore

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// LeafMap is what one leaf of a device says.
type LeafMap struct {
	Entries [LeafBlocks]Mapping
	Freed   uint64 // what Freed said then; blocks may have become exclusive when it says something else
	// Next is the next leaf that maps anything, when this one does not; it
	// is noLeaf after the last.
	Next uint64
}

const noLeaf = ^uint64(0)

// Leaf returns the mappings of the virtual blocks from leaf × LeafBlocks on.
// One lookup answers at any depth of snapshots.
func (p *Pool) Leaf(id uint32, leaf uint64) (*LeafMap, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.failedLocked(); err != nil {
		return nil, err
	}
	d, err := p.byIDLocked(id)
	if err != nil {
		return nil, err
	}
	n, shared, err := p.leafLocked(d, leaf)
	if err != nil {
		return nil, p.metadataErrorLocked(err)
	}
	m := &LeafMap{Freed: p.freed}
	if n == nil {
		next, at, err := p.nextLeafLocked(d, leaf)
		if m.Next = at; next == nil {
			m.Next = noLeaf
		}
		return m, err
	}
	shared = shared || d.quiet > 0
	for i, e := range n.e {
		if e != 0 {
			m.Entries[i] = p.mappingLocked(e, shared)
		}
	}
	return m, nil
}

func (p *Pool) mappingLocked(e uint64, shared bool) Mapping {
	b := entryBlock(e)
	if b == zeroBlock {
		return ZeroMapping
	}
	m := MappedTo(b)
	if shared || p.refs.count(b) != 1 {
		return m.Shared()
	}
	return m
}

// Assign maps virtual blocks of a device to data blocks that owner has
// reserved and written whole. The list is sorted by virtual block. Blocks
// that were mapped there before lose a reference when that is durable.
func (p *Pool) Assign(id uint32, owner Owner, list []Assignment) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := p.changeLocked(id)
	if err != nil {
		return err
	}
	for _, a := range list {
		if p.reserved[a.Data] != owner || owner == nil {
			return errs.New(errs.Failed, "data block %d is not reserved for this user: %w", a.Data, unix.EINVAL)
		}
	}
	p.touchLocked(d)
	var leaf *node
	at := ^uint64(0)
	for _, a := range list {
		if a.Virtual/LeafBlocks != at {
			at = a.Virtual / LeafBlocks
			if leaf, err = p.editLeafLocked(d, at); err != nil {
				return p.metadataErrorLocked(err)
			}
		}
		delete(p.reserved, a.Data)
		p.setLocked(d, leaf, a.Virtual, leafEntry(a.Data, id))
	}
	p.spaceChangedLocked()
	return nil
}

// changeLocked finds a device whose mappings are to be changed.
func (p *Pool) changeLocked(id uint32) (*device, error) {
	switch p.mode {
	case Failed:
		return nil, errFailed
	case ReadOnly:
		return nil, errs.New(errs.Corrupt, "the pool is read-only: %w: %w", p.cause, unix.EIO)
	}
	return p.byIDLocked(id)
}

// unmapLeaves is how many leaves are changed under one hold of the lock.
const unmapLeaves = 64

// Unmap makes count virtual blocks unmapped: they read as the external
// origin, or as zeros. In a read-only pool it does nothing and succeeds, as a
// discard does in dm-thin.
func (p *Pool) Unmap(id uint32, from, count uint64) error {
	end := from + count
	for leaf := from / LeafBlocks; ; {
		p.mu.Lock()
		if p.mode == ReadOnly {
			p.mu.Unlock()
			return nil
		}
		d, err := p.changeLocked(id)
		for i := 0; err == nil && i < unmapLeaves; i++ {
			var n *node
			if n, leaf, err = p.nextLeafLocked(d, leaf); n == nil || leaf*LeafBlocks >= end {
				p.mu.Unlock()
				return err
			}
			err = p.unmapLeafLocked(d, n, leaf, from, end)
			leaf++
		}
		if err != nil {
			err = p.metadataErrorLocked(err)
			p.mu.Unlock()
			return err
		}
		p.mu.Unlock()
	}
}

// unmapLeafLocked unmaps what of [from, end) leaf number leaf, which is n, maps.
func (p *Pool) unmapLeafLocked(d *device, n *node, leaf, from, end uint64) error {
	base := leaf * LeafBlocks
	lo, hi := max(from, base)-base, min(end, base+LeafBlocks)-base
	any := false
	for _, e := range n.e[lo:hi] {
		any = any || e != 0
	}
	if !any {
		return nil
	}
	p.touchLocked(d)
	n, err := p.editLeafLocked(d, leaf)
	if err != nil {
		return err
	}
	for i := lo; i < hi; i++ {
		if n.e[i] != 0 {
			p.setLocked(d, n, base+i, 0)
		}
	}
	if n.used == 0 {
		return p.pruneLocked(d, leaf)
	}
	return nil
}

// pruneLocked removes the empty leaf number leaf, whose whole path belongs
// to the open transaction, and what becomes empty above it.
func (p *Pool) pruneLocked(d *device, leaf uint64) error {
	n, err := p.nodeLocked(d.rec.Root)
	if err != nil {
		return err
	}
	var path []*node
	for n.level > 0 {
		path = append(path, n)
		if n, err = p.childLocked(n, childIndex(leaf, n.level)); err != nil {
			return err
		}
	}
	for n.used == 0 {
		delete(p.open.nodes, n.id)
		if len(path) == 0 {
			d.rec.Root, d.rec.Level = 0, 0
			return nil
		}
		n = path[len(path)-1]
		path = path[:len(path)-1]
		n.set(childIndex(leaf, n.level), 0)
	}
	return nil
}

// SetZero makes count virtual blocks read as zeros without data blocks, also
// where the device has an external origin.
func (p *Pool) SetZero(id uint32, from, count uint64) error {
	origin, err := p.originBlocks(id)
	if err != nil {
		return err
	}
	// Where no origin shows, what is unmapped is zeros already.
	shows := min(from+count, max(origin, from))
	for v := from; v < shows; {
		next := min((v/LeafBlocks+1)*LeafBlocks, shows)
		if err := p.setZeroLeaf(id, v, next); err != nil {
			return err
		}
		v = next
	}
	if shows == from+count {
		return nil
	}
	return p.Unmap(id, shows, from+count-shows)
}

// originBlocks is how many blocks of the device its external origin reaches into.
func (p *Pool) originBlocks(id uint32) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := p.byIDLocked(id)
	if err != nil || d.rec.Origin == nil {
		return 0, err
	}
	bs := p.blockSize
	return uint64((d.rec.Origin.Valid + bs - 1) / bs), nil
}

func (p *Pool) setZeroLeaf(id uint32, from, to uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := p.changeLocked(id)
	if err != nil {
		return err
	}
	p.touchLocked(d)
	n, err := p.editLeafLocked(d, from/LeafBlocks)
	if err != nil {
		return p.metadataErrorLocked(err)
	}
	for v := from; v < to; v++ {
		p.setLocked(d, n, v, leafEntry(zeroBlock, id))
	}
	return nil
}

// Trace says which data block answers for a virtual block and which device
// first wrote it; ok is false where nothing is mapped.
func (p *Pool) Trace(name string, v uint64) (block uint64, owner uint32, ok bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := p.byNameLocked(name)
	if err != nil {
		return 0, 0, false, err
	}
	if v >= MaxDeviceSize/uint64(p.blockSize) {
		return 0, 0, false, errs.New(errs.Usage, "virtual block %d lies beyond the largest device", v)
	}
	n, _, err := p.leafLocked(d, v/LeafBlocks)
	if err != nil {
		return 0, 0, false, p.metadataErrorLocked(err)
	}
	if n == nil || n.e[v%LeafBlocks] == 0 || entryBlock(n.e[v%LeafBlocks]) == zeroBlock {
		return 0, 0, false, nil
	}
	e := n.e[v%LeafBlocks]
	return entryBlock(e), entryOwner(e), true, nil
}

// View calls read, which looks mappings up and reads their blocks without
// owning the device. A block that is freed meanwhile is given to nobody
// before read returns.
func (p *Pool) View(read func() error) error {
	p.mu.Lock()
	exported, cause := p.sb.Exported, p.cause
	p.mu.Unlock()
	if exported {
		return cause // the blocks may be anybody's by now
	}
	p.reading.RLock()
	defer p.reading.RUnlock()
	return read()
}

// SettleDevice has the owner of a device, if there is one, assign all that
// it has written.
func (p *Pool) SettleDevice(name string) (DeviceInfo, error) {
	p.mu.Lock()
	d, err := p.byNameLocked(name)
	if err != nil {
		p.mu.Unlock()
		return DeviceInfo{}, err
	}
	info, err := p.infoLocked(d)
	owner := d.owner
	p.mu.Unlock()
	if err == nil && owner != nil {
		err = owner.Settle(info.ID)
	}
	return info, err
}

// SettleAll has all owners assign what they have written.
func (p *Pool) SettleAll() error {
	p.mu.Lock()
	owners := map[uint32]Owner{}
	for id, d := range p.devs {
		if d.owner != nil {
			owners[id] = d.owner
		}
	}
	p.mu.Unlock()
	for id, owner := range owners {
		if err := owner.Settle(id); err != nil {
			return fmt.Errorf("device %d: %w", id, err)
		}
	}
	return nil
}
