package blockstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/layerfs/layerfs/internal/errs"
)

// load reads the pool from its index: the superblock, the devices, and, by
// walking their trees, every count. Nothing derivable is stored, so nothing
// derivable can be wrong. It also forgets all that a former load knew. mu is
// held, or nobody else knows the pool yet.
func (p *Pool) load() error {
	data, err := p.idx.get(superKey)
	if errors.Is(err, errNoKey) {
		return errs.New(errs.Corrupt, "the index has no superblock")
	} else if err != nil {
		return err
	}
	sb, err := decodeSuper(data)
	if err != nil {
		return err
	}
	p.sb = sb
	p.beginInstance()
	if p.blockSize == 0 {
		p.blockSize = int64(sb.Options.BlockSize)
	}
	p.devs, p.names = map[uint32]*device{}, map[string]uint32{}
	p.refs, p.nodeRefs, p.cache = newRefTable(sb.Blocks), map[uint64]uint32{}, newNodeCache()
	p.open, p.sealed, p.durable = newTransaction(sb.Seq+1), nil, sb.Seq
	p.reclaim, p.trash, p.punch, p.pins = nil, nil, bitmap{}, nil
	p.reserved = map[uint64]Owner{}
	p.hostSeen = time.Time{}
	if err := p.loadDevices(); err != nil {
		return err
	}
	w := walker{p: p, tags: map[uint64][]uint32{}}
	if err := w.walkAll(); err != nil {
		p.setModeLocked(ReadOnly, err)
		p.sb.NeedsCheck = true
		return nil
	}
	p.setModeLocked(p.loadedMode())
	return p.sweepOrphans(&w)
}

// beginInstance gives the pool a new instance, once.
func (p *Pool) beginInstance() {
	if p.instance == "" {
		p.instance = newUUID()
	}
	if p.sb.Instance != "" && p.sb.Instance != p.instance {
		past := append(p.sb.Past, Instance{p.sb.Instance, p.sb.Seq})
		p.sb.Past = past[max(0, len(past)-maxPast):]
	}
	p.sb.Instance = p.instance
}

// Instances returns what this one is called and the ones before it.
func (p *Pool) Instances() (id string, past []Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.instance, p.sb.Past
}

func (p *Pool) loadedMode() (Mode, error) {
	switch {
	case p.sb.NeedsCheck:
		return ReadOnly, errs.New(errs.Corrupt, "the pool needs a check: `layerfs pool check --repair`")
	case p.sb.Exported:
		return ReadOnly, errs.New(errs.Busy, "the pool is exported: dm-thin may be writing its data; `layerfs pool restore` brings it back")
	}
	return ReadWrite, nil
}

func (p *Pool) loadDevices() error {
	return p.idx.scan(devicePrefix, true, func(key, val []byte) error {
		var rec deviceRecord
		if err := json.Unmarshal(val, &rec); err != nil {
			return errs.New(errs.Corrupt, "the record of device %x is damaged: %w", key, err)
		}
		if string(deviceKey(rec.ID)) != string(key) || rec.ID > MaxDeviceID || rec.Size < 0 || rec.Size > MaxDeviceSize {
			return errs.New(errs.Corrupt, "the record of device %x is damaged", key)
		}
		if _, twice := p.names[rec.Name]; twice {
			return errs.New(errs.Corrupt, "two devices are called %q", rec.Name)
		}
		p.devs[rec.ID] = &device{rec: rec}
		p.names[rec.Name] = rec.ID
		return nil
	})
}

// sweepOrphans queues the records of nodes that nothing reaches: a commit
// that did not get to its roots left them, or a deletion that was not
// finished. They must go before their ids are given out again.
func (p *Pool) sweepOrphans(w *walker) error {
	return p.idx.scan(nodePrefix, false, func(key, _ []byte) error {
		id, ok := nodeIDOf(key)
		if !ok {
			return errs.New(errs.Corrupt, "the index has a key %x that no pool writes", key)
		}
		if _, reached := w.mapped[id]; !reached {
			p.trash = append(p.trash, id)
			p.sb.NextNode = max(p.sb.NextNode, id+1)
		}
		return nil
	})
}

// fitData makes the data file as long as the pool says. A crash may have come
// between its growth and the commit that tells of it; the reverse means that
// blocks are missing.
func (p *Pool) fitData() error {
	size, err := p.data.Size()
	if err != nil {
		return err
	}
	want := int64(p.sb.Blocks) * p.blockSize
	if size < want {
		return errs.New(errs.Corrupt, "the data file has %d bytes, the pool has %d blocks of %d bytes: it was cut", size, p.sb.Blocks, p.sb.Options.BlockSize)
	}
	return nil
}

// walker visits every node once and counts what refers to what.
type walker struct {
	p      *Pool
	mapped map[uint64]uint64 // data blocks below each node seen
	tags   map[uint64][]uint32
	// problem, when set, is told about what is wrong and may have it
	// mended by returning true; without it the first problem ends the walk.
	problem func(n *node, i int, err error) bool
}

func (w *walker) walkAll() error {
	w.mapped = map[uint64]uint64{}
	for _, d := range w.p.sortedDevices() {
		if err := w.device(&d.rec); err != nil {
			return err
		}
	}
	held := w.p.sb.Held
	if held == nil {
		return nil
	}
	return w.held(held)
}

func (w *walker) device(rec *deviceRecord) error {
	if rec.Root == 0 {
		if rec.Mapped != 0 {
			return errs.New(errs.Corrupt, "device %d has no tree but %d mapped blocks", rec.ID, rec.Mapped)
		}
		return nil
	}
	if w.enter(rec.Root) {
		if err := w.tree(rec.Root, rec.Level, 0); err != nil {
			return fmt.Errorf("device %d: %w", rec.ID, err)
		}
	}
	if n := w.mapped[rec.Root]; n != rec.Mapped {
		return errs.New(errs.Corrupt, "device %d maps %d blocks, its record says %d", rec.ID, n, rec.Mapped)
	}
	return nil
}

// enter counts a reference to a node and reports whether it is the first.
func (w *walker) enter(id uint64) bool {
	if _, seen := w.mapped[id]; seen {
		w.p.incNodeLocked(id)
		return false
	}
	w.mapped[id] = 0
	return true
}

// tree walks the node id, which must have the given level and starts at leaf base.
func (w *walker) tree(id uint64, level uint8, base uint64) error {
	if id >= w.p.sb.NextNode {
		return errs.New(errs.Corrupt, "node %d is younger than the pool", id)
	}
	n, err := w.p.nodeLocked(id)
	if err != nil {
		return err
	}
	if n.level != level {
		return errs.New(errs.Corrupt, "node %d has level %d, not %d", id, n.level, level)
	}
	var sum uint64
	for i, e := range n.e {
		if e == 0 {
			continue
		}
		below, err := w.entry(n, i, base)
		if err != nil {
			if w.problem == nil || !w.problem(n, i, err) {
				return err
			}
			continue
		}
		sum += below
	}
	w.mapped[id] = sum
	return nil
}

// entry walks entry i of n and returns how many data blocks are below it.
func (w *walker) entry(n *node, i int, base uint64) (uint64, error) {
	e := n.e[i]
	if n.level > 0 {
		if w.enter(e) {
			if err := w.tree(e, n.level-1, base+uint64(i)*leaves(n.level-1)); err != nil {
				delete(w.mapped, e)
				return 0, err
			}
		}
		return w.mapped[e], nil
	}
	b := entryBlock(e)
	if b == zeroBlock {
		return 0, nil
	}
	if b >= w.p.sb.Blocks {
		return 0, errs.New(errs.Corrupt, "node %d maps data block %d, the pool has %d", n.id, b, w.p.sb.Blocks)
	}
	if err := w.claim(b, base*fanout+uint64(i), entryOwner(e)); err != nil {
		return 0, err
	}
	w.p.refs.inc(b)
	return 1, nil
}

// claim notices a data block that two places map without sharing it: a
// shared block keeps its virtual block and the device that first wrote it.
// An index that lost a deletion would otherwise hand one container's data to
// another.
func (w *walker) claim(b, v uint64, owner uint32) error {
	tag := (uint32(v)*2654435761 ^ owner*40503) | 1
	c := b / chunkBlocks
	if w.tags[c] == nil {
		w.tags[c] = make([]uint32, chunkBlocks)
	}
	t := &w.tags[c][b%chunkBlocks]
	if *t != 0 && *t != tag {
		return errs.New(errs.Corrupt, "data block %d belongs to two devices that do not share it", b)
	}
	*t = tag
	return nil
}

// held walks the metadata snapshot. What only it reaches is pinned, not
// counted.
func (w *walker) held(h *heldSet) error {
	p := w.p
	pins := &pins{nextNode: h.NextNode}
	for i := range h.Devices {
		rec := &h.Devices[i]
		if rec.Root == 0 {
			continue
		}
		if err := w.pin(pins, rec.Root); err != nil {
			return fmt.Errorf("metadata snapshot: device %d: %w", rec.ID, err)
		}
	}
	p.pins = pins
	return nil
}

func (w *walker) pin(pins *pins, id uint64) error {
	n, err := w.p.nodeLocked(id)
	if err != nil {
		return err
	}
	if _, seen := w.mapped[id]; !seen {
		w.mapped[id] = 0
		pins.lostNodes = append(pins.lostNodes, id)
	}
	for _, e := range n.e {
		switch {
		case e == 0:
		case n.level > 0:
			if err := w.pin(pins, e); err != nil {
				return err
			}
		case entryBlock(e) != zeroBlock && entryBlock(e) < w.p.sb.Blocks:
			b := entryBlock(e)
			if w.p.refs.count(b) == 0 {
				w.p.refs.inc(b)
				pins.lostBlocks = append(pins.lostBlocks, b)
			}
			pins.blocks.add(b)
		}
	}
	return nil
}
