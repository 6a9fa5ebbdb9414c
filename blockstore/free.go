package blockstore

import (
	"time"

	"golang.org/x/sys/unix"
)

// dropBlockLocked takes a durable reference from block b.
func (p *Pool) dropBlockLocked(b uint64) {
	if p.refs.count(b) == 1 && p.pins != nil && p.pins.blocks.has(b) {
		p.pins.lostBlocks = append(p.pins.lostBlocks, b)
		return
	}
	if p.refs.dec(b) && !p.noPunch && !p.sb.Options.NoDiscardPassdown {
		p.punch.add(b)
	}
}

// discardNodeLocked forgets a node that nothing refers to any more.
func (p *Pool) discardNodeLocked(id uint64) {
	p.cache.drop(id)
	delete(p.nodeRefs, id)
	if p.pins != nil && id < p.pins.nextNode {
		p.pins.lostNodes = append(p.pins.lostNodes, id)
		return
	}
	p.trash = append(p.trash, id)
}

// reclaimStep is how many nodes are taken apart under one hold of the lock.
const reclaimStep = 32

// reclaimLoop takes references from nodes that lost a parent durably, and
// from all below them once the last one has gone. Until it gets there the
// counts are too high, which costs a copy and nothing else.
func (p *Pool) reclaimLoop() {
	for {
		p.mu.Lock()
		ch, closed := p.changed, p.closed
		for i := 0; i < reclaimStep && len(p.reclaim) > 0; i++ {
			p.reclaimOneLocked()
		}
		more := len(p.reclaim) > 0
		if !more && p.reclaim != nil {
			p.reclaim = nil
			p.freed++
			p.spaceChangedLocked()
			p.broadcastLocked()
			ch = p.changed
		}
		p.mu.Unlock()
		if closed {
			return // what is left is found by the next open
		}
		if !more {
			select {
			case <-ch:
			case <-p.stop:
				return
			}
		}
	}
}

func (p *Pool) reclaimOneLocked() {
	id := p.reclaim[len(p.reclaim)-1]
	p.reclaim = p.reclaim[:len(p.reclaim)-1]
	switch refs := p.nodeRefs[id]; {
	case refs > 2:
		p.nodeRefs[id]--
		return
	case refs == 2:
		delete(p.nodeRefs, id)
		return
	}
	n, err := p.nodeLocked(id)
	if err != nil {
		_ = p.metadataErrorLocked(err) // the blocks below stay taken until a check
		return
	}
	for _, e := range n.e {
		switch {
		case e == 0:
		case n.level > 0:
			p.reclaim = append(p.reclaim, e)
		case entryBlock(e) != zeroBlock:
			p.dropBlockLocked(entryBlock(e))
		}
	}
	delete(p.open.nodes, id)
	p.discardNodeLocked(id)
}

// pins is what the metadata snapshot keeps from being freed. It does not
// count as a reference: as in dm-thin, blocks may still be overwritten in
// place while it is held.
type pins struct {
	nextNode   uint64 // nodes below it may belong to the snapshot
	blocks     bitmap // blocks in use when it was taken
	lostNodes  []uint64
	lostBlocks []uint64
}

// punchPause lets frees that follow each other become one hole.
const punchPause = 20 * time.Millisecond

// punchLoop gives the space of freed blocks back to the file system, in
// stretches: one call for 256 blocks costs as much as six for one.
func (p *Pool) punchLoop() {
	for {
		p.mu.Lock()
		ch := p.changed
		idle := p.punch.n == 0
		p.mu.Unlock()
		if !idle {
			select {
			case <-p.stop:
				return
			case <-time.After(punchPause):
			}
			p.punchAll()
			continue
		}
		select {
		case <-ch:
		case <-p.stop:
			return
		}
	}
}

// punchAll empties the set of blocks to punch.
func (p *Pool) punchAll() {
	for {
		p.mu.Lock()
		if p.mode >= ReadOnly {
			p.punch = bitmap{} // what is free here may not be for whoever has the data now
			p.broadcastLocked()
		}
		from, to, ok := p.punch.run()
		if !ok || p.closed {
			p.mu.Unlock()
			return
		}
		to = min(to, from+16384)
		for b := from; b < to; b++ {
			p.punch.remove(b)
		}
		p.punching = [2]uint64{from, to}
		size := p.blockSize
		p.mu.Unlock()

		err := p.data.Punch(int64(from)*size, int64(to-from)*size)

		p.mu.Lock()
		p.punching = [2]uint64{}
		if isUnsupported(err) {
			p.noPunch, p.punch = true, bitmap{}
		}
		p.hostSeen = time.Time{}
		p.broadcastLocked()
		p.mu.Unlock()
	}
}

// Trim gives back the space of every free block and returns when that is
// done.
func (p *Pool) Trim() error {
	p.mu.Lock()
	err := p.messagesLocked()
	if err == nil && !p.noPunch {
		p.addFreeLocked()
	}
	p.broadcastLocked()
	p.mu.Unlock()
	if err == nil {
		p.waitPunched()
	}
	return err
}

// addFreeLocked adds every free block that may hold data to the set to punch.
func (p *Pool) addFreeLocked() {
	size := p.blockSize
	end := int64(p.refs.n) * size
	for off := p.data.NextData(0, end); off < end; {
		b := uint64(off / size)
		if p.refs.count(b) == 0 {
			p.punch.add(b)
		}
		off = p.data.NextData(int64(b+1)*size, end)
	}
}

func (p *Pool) waitPunched() {
	p.wait(func() bool { return p.punch.n == 0 && p.punching[1] == 0 })
}

// waitReclaimed blocks until everything that is durably unused is free.
func (p *Pool) waitReclaimed() {
	p.wait(func() bool { return len(p.reclaim) == 0 })
}

// Idle reports whether nothing is left to be done in the background.
func (p *Pool) Idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.reclaim) == 0 && p.punch.n == 0 && p.punching[1] == 0
}

// isUnsupported reports that the file system cannot do a thing at all.
func isUnsupported(err error) bool { return err == unix.EOPNOTSUPP || err == unix.ENOSYS }
