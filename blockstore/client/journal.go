package client

import (
	"context"
	"slices"
	"sync"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/wire"
)

// journal is what a new pool process must be told: changes of mappings that
// are not known to be durable, in order, and blocks that are reserved.
type journal struct {
	mu       sync.Mutex
	entries  []*entry
	reserved map[uint64]struct{}
}

// entry is a change. It enters the journal before it is sent, so that a
// process that dies with it in hand hears it from us again.
type entry struct {
	kind        wire.Kind // Assign, Unmap, SetZero or SetSize
	id          uint32
	list        []blockstore.Assignment // of Assign
	from, count uint64                  // of the others; from is the size of SetSize
	instance    string                  // the process that answered
	seq         uint64                  // the transaction it belongs to there; 0: not answered yet
	heard       bool                    // some process has answered: the change is made
}

func (j *journal) init() { j.reserved = map[uint64]struct{}{} }

// begin notes a change that is about to be sent. Its blocks are the entry's from here
// on, and no longer among the reserved ones: once the process has the change it may free
// them and give them to us anew, and what is heard late of the change must not touch that.
func (j *journal) begin(e *entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, e)
	for _, a := range e.list {
		delete(j.reserved, a.Data)
	}
}

// answered notes that e belongs to transaction seq, which is never 0, of an
// instance of the pool. When e was repeated to a next instance before its answer was
// looked at, that one's answer counts: by the first one's e would never become durable,
// and would be repeated once more when it is long out of date.
func (j *journal) answered(e *entry, instance string, seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e.seq == 0 {
		j.setLocked(e, instance, seq)
	}
}

// repeated is answered for what was told to a new instance.
func (j *journal) repeated(e *entry, instance string, seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.setLocked(e, instance, seq)
}

// setLocked notes an answer. Precondition: mu is held.
func (j *journal) setLocked(e *entry, instance string, seq uint64) {
	e.instance, e.seq, e.heard = instance, seq, true
}

// told reports whether a pool process that lives has answered to e.
func (j *journal) told(e *entry) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return e.seq != 0
}

// drop removes a change that was refused, or is durable.
func (j *journal) drop(e *entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.removeLocked(func(o *entry) bool { return o == e })
}

func (j *journal) removeLocked(which func(*entry) bool) {
	j.entries = slices.DeleteFunc(j.entries, which)
}

// durable forgets what is durable with transaction seq of an instance.
func (j *journal) durable(instance string, seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.removeLocked(func(e *entry) bool { return e.seq != 0 && e.seq <= seq && e.instance == instance })
}

// outlived forgets what the instances that are past made durable; of the
// rest none that lives has heard.
func (j *journal) outlived(past []blockstore.Instance) {
	for _, i := range past {
		j.durable(i.ID, i.Seq)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.entries {
		e.seq = 0
	}
}

// of lists the changes of a device that are made and not known to be durable. One that
// is on its way only now is not among them: a commit may come before it.
func (j *journal) of(id uint32) []*entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []*entry
	for _, e := range j.entries {
		if e.id == id && e.heard {
			out = append(out, e)
		}
	}
	return out
}

// forget drops everything about a device, whose changes are lost, and all
// reservations, which are lost with them.
func (j *journal) forget(id uint32) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.removeLocked(func(e *entry) bool { return e.id == id })
	clear(j.reserved)
}

func (j *journal) reserve(grants []blockstore.Grant) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, g := range grants {
		j.reserved[g.Block] = struct{}{}
	}
}

func (j *journal) unreserve(blocks []uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, b := range blocks {
		delete(j.reserved, b)
	}
}

// replay tells a new process all that no durable transaction of those before
// it has.
func (j *journal) replay(c *conn, w *wire.Welcome) error {
	j.outlived(w.Past)
	j.mu.Lock()
	entries := slices.Clone(j.entries)
	blocks := make(map[uint64]struct{}, len(j.reserved))
	for b := range j.reserved {
		blocks[b] = struct{}{}
	}
	j.mu.Unlock()
	for _, e := range entries {
		for _, a := range e.list {
			delete(blocks, a.Data)
		}
		seq, err := c.tell(e)
		if err != nil {
			return err
		}
		j.repeated(e, w.Instance, seq)
	}
	if len(blocks) == 0 {
		return nil
	}
	words := make([]uint64, 0, len(blocks))
	for b := range blocks {
		words = append(words, b)
	}
	_, err := c.roundTrip(context.Background(), wire.AdoptBlocks, wire.Words(words...))
	return err
}

// tell repeats one change.
func (c *conn) tell(e *entry) (seq uint64, err error) {
	kind, body := wire.Adopt, wire.AssignBody(e.id, e.list)
	if e.kind != wire.Assign {
		kind, body = e.kind, wire.Words(uint64(e.id), e.from, e.count)
	}
	answer, err := c.roundTrip(context.Background(), kind, body)
	if err != nil {
		return 0, err
	}
	w, err := wire.ParseWords(answer, 1)
	if err != nil {
		return 0, err
	}
	return w[0], nil
}
