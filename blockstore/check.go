package blockstore

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/layerfs/layerfs/internal/errs"
)

// Report is what a check found.
type Report struct {
	Problems []string `json:"problems"` // what is wrong, in the order found
	Repaired bool     `json:"repaired"` // and mended
	Devices  int      `json:"devices"`
	Nodes    int      `json:"nodes"`
	Mapped   uint64   `json:"mapped"` // blocks that devices map
}

// Check opens the pool in dir, whose process must not run, and looks at all
// of it: every node's checksum and place, every mapping, every count. With
// repair it unmaps what cannot be right, saying so, and clears needs_check.
func Check(dir string, repair bool) (*Report, error) {
	r := &Report{}
	if err := checkData(dir, repair, r); err != nil {
		return r, err
	}
	p, err := Open(dir)
	if err != nil {
		return r, err
	}
	err = p.check(repair, r)
	if e := p.Close(); err == nil {
		err = e
	}
	return r, err
}

// checkData mends a data file that was cut: what was in it is lost, but the
// pool can be opened, and what is missing reads as zeros.
func checkData(dir string, repair bool, r *Report) error {
	idx, err := openIndex(dir, isSmall(dir))
	if err != nil {
		return err
	}
	defer idx.close()
	raw, err := idx.get(superKey)
	if err != nil {
		return errs.New(errs.Corrupt, "the index of %s has no superblock", dir)
	}
	sb, err := decodeSuper(raw)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, dataName)
	want := int64(sb.Blocks) * int64(sb.Options.BlockSize)
	fi, err := os.Stat(path)
	if err != nil {
		return errs.New(errs.Corrupt, "the pool has lost its data file: %w", err)
	}
	if fi.Size() >= want {
		return nil
	}
	r.Problems = append(r.Problems, fmt.Sprintf("the data file has %d bytes instead of %d: blocks at its end are lost", fi.Size(), want))
	if !repair {
		return errs.New(errs.Corrupt, "%s; `layerfs pool check --repair` makes it long again, with zeros", r.Problems[0])
	}
	r.Repaired = true
	if err := os.Truncate(path, want); err != nil {
		return err
	}
	sb.NeedsCheck = true // until the rest has been looked at
	return idx.commit(nil, []record{encodeJSON(superKey, sb)})
}

// check verifies the open pool and, with repair, mends it.
func (p *Pool) check(repair bool, r *Report) error {
	p.commitMu.Lock()
	defer p.commitMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	needed := p.sb.NeedsCheck
	p.refs, p.nodeRefs, p.cache = newRefTable(p.sb.Blocks), map[uint64]uint32{}, newNodeCache()
	p.pins = nil
	w := walker{p: p, tags: map[uint64][]uint32{}}
	w.problem = func(n *node, i int, err error) bool {
		r.Problems = append(r.Problems, err.Error())
		return true
	}
	if repair {
		w.problem = func(n *node, i int, err error) bool {
			r.Problems = append(r.Problems, err.Error())
			p.mendLocked(n, i)
			return true
		}
	}
	err := w.mendDevices(repair, r)
	r.Devices, r.Nodes = len(p.devs), len(w.mapped)
	for _, d := range p.devs {
		r.Mapped += d.rec.Mapped
	}
	if err != nil {
		return err
	}
	if needed && len(r.Problems) == 0 {
		r.Problems = append(r.Problems, "the pool is marked as needing a check")
	}
	if len(r.Problems) == 0 || !repair {
		return nil
	}
	r.Repaired = true
	p.sb.NeedsCheck, p.sb.Held = false, nil
	p.sb.Seq++
	roots := []record{encodeJSON(superKey, p.sb)}
	for id, d := range p.devs {
		roots = append(roots, encodeJSON(deviceKey(id), d.rec))
	}
	var nodes []record
	for id, n := range p.open.nodes {
		nodes = append(nodes, record{nodeKey(id), n.encode()})
	}
	if err := p.idx.commit(nodes, roots); err != nil {
		return err
	}
	if err := p.load(); err != nil {
		return err
	}
	if p.mode == ReadOnly && !p.sb.Exported {
		return fmt.Errorf("the pool is still damaged after the repair: %w", p.cause)
	}
	return nil
}

// mendLocked unmaps entry i of n on the disk, without making a new node: a
// repair is not undone by a crash, only begun anew.
func (p *Pool) mendLocked(n *node, i int) {
	n.set(i, 0)
	p.open.nodes[n.id] = n
}

// mendDevices walks every device; a device whose root is lost becomes empty.
func (w *walker) mendDevices(repair bool, r *Report) error {
	w.mapped = map[uint64]uint64{}
	for _, d := range w.p.sortedDevices() {
		rec := &d.rec
		var n uint64
		if rec.Root != 0 {
			if w.enter(rec.Root) {
				if err := w.tree(rec.Root, rec.Level, 0); err != nil {
					delete(w.mapped, rec.Root)
					r.Problems = append(r.Problems, fmt.Sprintf("device %d (%s): all its mappings are lost: %v", rec.ID, rec.Name, err))
					if repair {
						rec.Root, rec.Level = 0, 0
					}
				}
			}
			n = w.mapped[rec.Root]
		}
		if n != rec.Mapped {
			r.Problems = append(r.Problems, fmt.Sprintf("device %d (%s): %d mapped blocks, its record says %d", rec.ID, rec.Name, n, rec.Mapped))
			if repair {
				rec.Mapped = n
			}
		}
	}
	return nil
}

// settle makes everything durable, frees what is unused then, and returns with
// mu held. The journal of a client may bring something new at any moment.
func (p *Pool) settle() error {
	for {
		if err := p.Commit(); err != nil {
			return err
		}
		p.waitReclaimed()
		p.mu.Lock()
		if !p.open.dirty && p.sealed == nil && len(p.reclaim) == 0 {
			return nil
		}
		p.mu.Unlock()
	}
}

// Audit compares every count of the open pool with what its trees say. It is
// for tests, after each step.
func (p *Pool) Audit() error {
	if err := p.settle(); err != nil {
		return err
	}
	defer p.mu.Unlock()
	fresh := &Pool{idx: p.idx, data: p.data, blockSize: p.blockSize, changed: make(chan struct{})}
	if err := fresh.load(); err != nil {
		return err
	}
	if fresh.mode == ReadOnly && p.mode != ReadOnly {
		return fresh.cause
	}
	for b := uint64(0); b < p.sb.Blocks; b++ {
		have, want := p.refs.count(b), fresh.refs.count(b)
		if _, reserved := p.reserved[b]; reserved && have == 1 {
			have = 0
		}
		if have != want {
			return fmt.Errorf("block %d: count %d, %d leaves map it", b, have, want)
		}
	}
	for id, n := range p.nodeRefs {
		if n > 1 && fresh.nodeRefs[id] != n {
			return fmt.Errorf("node %d: count %d, %d parents", id, n, fresh.nodeRefs[id])
		}
	}
	for id, n := range fresh.nodeRefs {
		if p.nodeRefs[id] != n {
			return fmt.Errorf("node %d: count %d, %d parents", id, p.nodeRefs[id], n)
		}
	}
	return nil
}
