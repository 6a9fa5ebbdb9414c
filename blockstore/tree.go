package blockstore

import (
	"fmt"

	"github.com/layerfs/layerfs/internal/errs"
)

// childIndex is where leaf number leaf hangs in a node of the given level.
func childIndex(leaf uint64, level uint8) int { return int(leaf>>(8*(level-1))) & (fanout - 1) }

// leaves is how many leaves a node of the level covers.
func leaves(level uint8) uint64 { return 1 << (8 * uint64(level)) }

// node returns the node with the given id. mu is held.
func (p *Pool) nodeLocked(id uint64) (*node, error) {
	if n := p.open.nodes[id]; n != nil {
		return n, nil
	}
	if p.sealed != nil {
		if n := p.sealed.nodes[id]; n != nil {
			return n, nil
		}
	}
	if n := p.cache.get(id); n != nil {
		return n, nil
	}
	data, err := p.idx.get(nodeKey(id))
	if err == nil {
		var n *node
		if n, err = decodeNode(id, data); err == nil {
			p.cache.add(n)
			return n, nil
		}
	}
	return nil, errs.New(errs.Corrupt, "index: node %d: %w", id, err)
}

// child returns entry i of n, checking what a damaged index could get wrong.
func (p *Pool) childLocked(n *node, i int) (*node, error) {
	c, err := p.nodeLocked(n.e[i])
	if err != nil {
		return nil, err
	}
	if c.level+1 != n.level {
		return nil, errs.New(errs.Corrupt, "index: node %d of level %d below node %d of level %d", c.id, c.level, n.id, n.level)
	}
	return c, nil
}

func (p *Pool) nodeSharedLocked(id uint64) bool { return p.nodeRefs[id] > 1 }

// leafLocked finds a leaf of d, or nil where nothing is mapped, and reports
// whether another tree reaches it too: a snapshot adds a parent to the root
// alone, so every node on the way counts (design rule 1).
func (p *Pool) leafLocked(d *device, leaf uint64) (n *node, shared bool, err error) {
	if d.rec.Root == 0 || leaf >= leaves(d.rec.Level) {
		return nil, false, nil
	}
	n, err = p.nodeLocked(d.rec.Root)
	for err == nil {
		shared = shared || p.nodeSharedLocked(n.id)
		if n.level == 0 {
			return n, shared, nil
		}
		i := childIndex(leaf, n.level)
		if n.e[i] == 0 {
			return nil, shared, nil
		}
		n, err = p.childLocked(n, i)
	}
	return nil, false, err
}

func (p *Pool) newNodeLocked(level uint8) *node {
	n := &node{id: p.sb.NextNode, seq: p.open.seq, level: level}
	p.sb.NextNode++
	p.open.nodes[n.id] = n
	return n
}

// shadowLocked returns the node that may be changed in n's place, as
// dm-btree's shadow_child: n itself when it belongs to the open transaction
// and to one parent, else a copy. A node with one parent moves: its children
// keep their counts and its record goes when the copy is durable. A node
// with several is copied: its children gain a parent and it loses one.
func (p *Pool) shadowLocked(n *node) *node {
	shared := p.nodeSharedLocked(n.id)
	if !shared && n.seq == p.open.seq {
		return n
	}
	c := p.newNodeLocked(n.level)
	c.used, c.e = n.used, n.e
	if !shared {
		p.open.dead = append(p.open.dead, n.id)
		return c
	}
	p.open.lostNodes = append(p.open.lostNodes, n.id)
	for _, e := range n.e {
		switch {
		case e == 0:
		case n.level > 0:
			p.incNodeLocked(e)
		case entryBlock(e) != zeroBlock:
			p.refs.inc(entryBlock(e))
		}
	}
	return c
}

func (p *Pool) incNodeLocked(id uint64) { p.nodeRefs[id] = max(p.nodeRefs[id], 1) + 1 }

// rootLocked makes the tree of d high enough for leaf and returns its root,
// ready to be changed.
func (p *Pool) rootLocked(d *device, leaf uint64) (*node, error) {
	if d.rec.Root == 0 {
		level := uint8(0)
		for leaf >= leaves(level) {
			level++
		}
		n := p.newNodeLocked(level)
		d.rec.Root, d.rec.Level = n.id, level
		return n, nil
	}
	n, err := p.nodeLocked(d.rec.Root)
	if err != nil {
		return nil, err
	}
	if n.level != d.rec.Level {
		return nil, errs.New(errs.Corrupt, "index: root %d of device %d has level %d, not %d", n.id, d.rec.ID, n.level, d.rec.Level)
	}
	for leaf >= leaves(n.level) {
		top := p.newNodeLocked(n.level + 1)
		top.set(0, n.id)
		n = top
	}
	n = p.shadowLocked(n)
	d.rec.Root, d.rec.Level = n.id, n.level
	return n, nil
}

// editLeafLocked returns a leaf of d that may be changed, making the path to it.
func (p *Pool) editLeafLocked(d *device, leaf uint64) (*node, error) {
	n, err := p.rootLocked(d, leaf)
	if err != nil {
		return nil, err
	}
	for n.level > 0 {
		i := childIndex(leaf, n.level)
		if n.e[i] == 0 {
			c := p.newNodeLocked(n.level - 1)
			n.set(i, c.id)
			n = c
			continue
		}
		c, err := p.childLocked(n, i)
		if err != nil {
			return nil, err
		}
		c = p.shadowLocked(c)
		n.e[i] = c.id
		n = c
	}
	return n, nil
}

// setLocked puts entry e at virtual block v of the editable leaf n and
// accounts for what was there.
func (p *Pool) setLocked(d *device, n *node, v uint64, e uint64) {
	old := n.set(int(v%fanout), e)
	if old != 0 && entryBlock(old) != zeroBlock {
		p.open.lostBlocks = append(p.open.lostBlocks, entryBlock(old))
		d.rec.Mapped--
	}
	if e != 0 && entryBlock(e) != zeroBlock {
		d.rec.Mapped++
	}
}

// nextLeafLocked returns the first leaf of d from number leaf on that exists.
func (p *Pool) nextLeafLocked(d *device, leaf uint64) (n *node, at uint64, err error) {
	if d.rec.Root == 0 || leaf >= leaves(d.rec.Level) {
		return nil, 0, nil
	}
	root, err := p.nodeLocked(d.rec.Root)
	if err != nil {
		return nil, 0, err
	}
	return p.seekLocked(root, 0, leaf)
}

// seekLocked looks below n, which starts at leaf base.
func (p *Pool) seekLocked(n *node, base, leaf uint64) (*node, uint64, error) {
	if n.level == 0 {
		return n, base, nil
	}
	step := leaves(n.level - 1)
	for i := range n.e {
		from := base + uint64(i)*step
		if n.e[i] == 0 || from+step <= leaf {
			continue
		}
		c, err := p.childLocked(n, i)
		if err != nil {
			return nil, 0, err
		}
		if found, at, err := p.seekLocked(c, from, leaf); found != nil || err != nil {
			return found, at, err
		}
	}
	return nil, 0, nil
}

// highestLocked returns the highest mapped virtual block, or -1.
func (p *Pool) highestLocked(d *device) (int64, error) {
	if d.rec.Root == 0 {
		return -1, nil
	}
	n, err := p.nodeLocked(d.rec.Root)
	if err != nil {
		return -1, err
	}
	return p.lastLocked(n, 0)
}

func (p *Pool) lastLocked(n *node, base uint64) (int64, error) {
	for i := fanout - 1; i >= 0; i-- {
		if n.e[i] == 0 {
			continue
		}
		if n.level == 0 {
			if entryBlock(n.e[i]) == zeroBlock {
				continue
			}
			return int64(base*fanout) + int64(i), nil
		}
		c, err := p.childLocked(n, i)
		if err != nil {
			return -1, err
		}
		if last, err := p.lastLocked(c, base+uint64(i)*leaves(n.level-1)); last >= 0 || err != nil {
			return last, err
		}
	}
	return -1, nil
}

// exclusiveLocked counts the data blocks below node id that only this tree maps.
func (p *Pool) exclusiveLocked(id uint64) (uint64, error) {
	if id == 0 || p.nodeSharedLocked(id) {
		return 0, nil
	}
	n, err := p.nodeLocked(id)
	if err != nil {
		return 0, err
	}
	var sum uint64
	for _, e := range n.e {
		switch {
		case e == 0:
		case n.level > 0:
			below, err := p.exclusiveLocked(e)
			if err != nil {
				return 0, err
			}
			sum += below
		case entryBlock(e) != zeroBlock && p.refs.count(entryBlock(e)) == 1:
			sum++
		}
	}
	return sum, nil
}

// metadataError is what the pool does when its index cannot be read: the
// damage must not spread.
func (p *Pool) metadataErrorLocked(err error) error {
	if errs.Of(err) == errs.Corrupt && p.mode < ReadOnly {
		p.setModeLocked(ReadOnly, fmt.Errorf("the index is damaged: %w", err))
		p.sb.NeedsCheck = true
	}
	return err
}
