package blockstore

import (
	"fmt"
)

// transaction is a set of changes that becomes durable as a whole. While it
// is open mu protects it; a sealed one is immutable.
type transaction struct {
	seq     uint64
	dirty   bool
	nodes   map[uint64]*node    // made in it
	devices map[uint32]struct{} // made, changed or deleted in it
	dead    []uint64            // nodes that a node of this transaction replaces
	// What lost a reference in it. The counts go down only when the
	// transaction is durable (design rule 2): until then the block belongs
	// to what a crash would bring back.
	lostBlocks []uint64
	lostNodes  []uint64
}

func newTransaction(seq uint64) *transaction {
	return &transaction{seq: seq, nodes: map[uint64]*node{}, devices: map[uint32]struct{}{}}
}

// Commit makes everything durable that was changed before it.
func (p *Pool) Commit() error {
	p.mu.Lock()
	seq := p.open.seq
	if !p.open.dirty {
		seq--
	}
	p.mu.Unlock()
	return p.Flush(seq)
}

// Flush returns when transaction seq is durable, and with it the data of all
// writes that were answered before. A seq that is durable already leaves
// only the data file to sync. Those who wait together share a commit.
func (p *Pool) Flush(seq uint64) error {
	p.mu.Lock()
	if seq <= p.durable {
		err := p.failedLocked()
		p.mu.Unlock()
		if err != nil {
			return err
		}
		return p.syncData()
	}
	p.mu.Unlock()
	p.commitMu.Lock()
	defer p.commitMu.Unlock()
	p.mu.Lock()
	done, err := seq <= p.durable, p.commitRefusedLocked()
	p.mu.Unlock()
	if done || err != nil {
		return err
	}
	return p.commit()
}

func (p *Pool) failedLocked() error {
	if p.mode == Failed {
		return errFailed
	}
	return nil
}

// commitRefusedLocked says why nothing can be committed any more.
func (p *Pool) commitRefusedLocked() error {
	if p.mode >= ReadOnly {
		return fmt.Errorf("the pool takes no changes: %w", p.cause)
	}
	return nil
}

// syncData syncs the data file alone. After an error nobody knows what is on
// the disk, so the pool stops changing.
func (p *Pool) syncData() error {
	err := p.data.Sync()
	if err != nil {
		p.commitMu.Lock()
		defer p.commitMu.Unlock()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.abortLocked(fmt.Errorf("syncing the data file: %w", err))
	}
	return err
}

// commit is shadow paging (design 5.3): seal, sync the data, write the
// nodes, then the roots and the superblock in one transaction, publish. A
// crash before the roots leaves the old trees and orphans that load sweeps.
// commitMu is held.
func (p *Pool) commit() error {
	if err := p.idx.room(); err != nil {
		return err // nothing was begun; the changes stay in the open transaction
	}
	p.mu.Lock()
	t, nodes, roots := p.sealLocked()
	p.mu.Unlock()
	err := p.data.Sync()
	if err == nil {
		err = p.idx.commit(nodes, roots)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.abortLocked(fmt.Errorf("committing transaction %d: %w", t.seq, err))
		return p.cause
	}
	p.publishLocked(t)
	return nil
}

// sealLocked closes the open transaction, opens the next and returns what is
// to be written. Nodes are encoded here, because their ids may still gain
// references but their content is final only under the lock.
func (p *Pool) sealLocked() (t *transaction, nodes, roots []record) {
	t = p.open
	p.sealed = t
	p.open = newTransaction(t.seq + 1)
	if p.timer != nil {
		p.timer.Stop()
	}
	nodes = p.trashRecords()
	p.trash = nil
	for id, n := range t.nodes {
		nodes = append(nodes, record{nodeKey(id), n.encode()})
	}
	for id := range t.devices {
		if d := p.devs[id]; d != nil {
			roots = append(roots, encodeJSON(deviceKey(id), d.rec))
		} else {
			roots = append(roots, record{deviceKey(id), nil})
		}
	}
	p.sb.Seq = t.seq
	return t, nodes, append(roots, encodeJSON(superKey, p.sb))
}

func (p *Pool) trashRecords() []record {
	var out []record
	for _, id := range p.trash {
		out = append(out, record{nodeKey(id), nil})
	}
	return out
}

// publishLocked is what follows from transaction t being durable: what it
// freed is free now.
func (p *Pool) publishLocked(t *transaction) {
	p.sealed = nil
	p.durable = t.seq
	for _, n := range t.nodes {
		p.cache.add(n)
	}
	for _, b := range t.lostBlocks {
		p.dropBlockLocked(b)
	}
	for _, id := range t.dead {
		p.discardNodeLocked(id)
	}
	p.reclaim = append(p.reclaim, t.lostNodes...)
	if len(t.lostBlocks)+len(t.lostNodes) > 0 {
		p.freed++
	}
	p.spaceChangedLocked()
	p.broadcastLocked()
}

// abortLocked gives up what is not durable, as dm-thin's
// abort_transaction: the pool becomes what the last commit made it, changes
// no more until it is checked, and devices that lost changes say so once.
// mu and commitMu are held.
func (p *Pool) abortLocked(cause error) {
	lost := p.open.devices
	if p.sealed != nil {
		for id := range p.sealed.devices {
			lost[id] = struct{}{}
		}
	}
	owners := map[uint32]Owner{}
	for id, d := range p.devs {
		if d.owner != nil {
			owners[id] = d.owner
		}
	}
	mode := ReadOnly
	if err := p.load(); err != nil {
		mode, cause = Failed, fmt.Errorf("%w; and reading the index again: %w", cause, err)
	}
	p.sb.NeedsCheck = true
	p.setModeLocked(mode, cause)
	for id, owner := range owners {
		if d := p.devs[id]; d != nil {
			d.owner = owner
			_, d.lost = lost[id]
		}
		go owner.Drop(id)
	}
	if p.mode == ReadOnly {
		// The mark should survive a restart. Where it cannot be written, the
		// reason for that will be met again.
		sb := p.sb
		_ = p.idx.commit(nil, []record{encodeJSON(superKey, sb)})
	}
}

// Freed counts the occasions on which something lost a reference, so that
// what was shared before may not be any more.
func (p *Pool) Freed() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.freed
}

// Changed returns the last transaction that changed the device. Once after
// changes of it were lost in an aborted one it is an error instead
// (dm_thin_aborted_changes).
func (p *Pool) Changed(id uint32) (seq uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := p.byIDLocked(id)
	if err != nil {
		return 0, err
	}
	if d.lost {
		d.lost = false
		return 0, errLost
	}
	return d.seq, nil
}

// Seq returns the last transaction that changed the device.
func (p *Pool) Seq(id uint32) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.devs[id]; d != nil {
		return d.seq
	}
	return 0
}

// DataFailed is how a user of the data file reports that syncing it failed
// for him: the kernel may have told nobody else.
func (p *Pool) DataFailed(err error) {
	p.commitMu.Lock()
	defer p.commitMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode < ReadOnly {
		p.abortLocked(fmt.Errorf("syncing the data file: %w", err))
	}
}
