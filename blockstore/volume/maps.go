package volume

import (
	"slices"
	"sync"

	"github.com/layerfs/layerfs/blockstore"
)

const leafBlocks = blockstore.LeafBlocks

// leafCache keeps the leaves used last: those of the young half, and those
// of the half before it that were used since. The volume's mu protects it.
type leafCache struct {
	young, old map[uint64]*blockstore.LeafMap
}

// halfCache is 2048 leaves, 4 MiB, which map 32 GiB in 64 KiB blocks.
const halfCache = 2048

func (c *leafCache) get(leaf uint64) *blockstore.LeafMap {
	if m := c.young[leaf]; m != nil {
		return m
	}
	m := c.old[leaf]
	if m != nil {
		c.put(leaf, m)
	}
	return m
}

func (c *leafCache) put(leaf uint64, m *blockstore.LeafMap) {
	if len(c.young) >= halfCache || c.young == nil {
		c.old, c.young = c.young, map[uint64]*blockstore.LeafMap{}
	}
	c.young[leaf] = m
	delete(c.old, leaf)
}

func (c *leafCache) clear() { c.young, c.old = nil, nil }

// forget drops the leaves from the one given up to, not including, another.
func (c *leafCache) forget(from, to uint64) {
	for _, half := range []map[uint64]*blockstore.LeafMap{c.young, c.old} {
		for leaf := range half {
			if leaf >= from && leaf < to {
				delete(half, leaf)
			}
		}
	}
}

// known returns the mapping of virtual block b, if it is known here.
func (v *Volume) knownLocked(b uint64) (blockstore.Mapping, bool) {
	if len(v.pending) > 0 {
		if p, ok := v.pending[b]; ok {
			return blockstore.MappedTo(p), true
		}
	}
	if m := v.maps.get(b / leafBlocks); m != nil {
		return m.Entries[b%leafBlocks], true
	}
	return 0, false
}

// lookup returns the mapping of virtual block b. io is held, or the caller
// only wants to know.
func (v *Volume) lookup(b uint64) (blockstore.Mapping, error) {
	for {
		v.mu.Lock()
		m, ok := v.knownLocked(b)
		changes := v.changes
		v.mu.Unlock()
		if ok {
			return m, nil
		}
		if err := v.fetch(b/leafBlocks, changes); err != nil {
			return 0, err
		}
	}
}

// fetch asks the pool for a leaf. The answer is kept only if no assignment
// was under way, which it might or might not contain: changes is the count
// from before.
func (v *Volume) fetch(leaf, changes uint64) error {
	m, err := v.svc.Leaf(v.id, leaf)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.changes == changes {
		v.maps.put(leaf, m)
	}
	return nil
}

// refresh asks again for a leaf in which b is shared, if that may have
// ended since.
func (v *Volume) refresh(b uint64) (blockstore.Mapping, error) {
	freed := v.svc.Freed()
	v.mu.Lock()
	m := v.maps.get(b / leafBlocks)
	stale := m != nil && m.Freed != freed
	if stale {
		v.maps.forget(b/leafBlocks, b/leafBlocks+1)
	}
	v.mu.Unlock()
	return v.lookup(b)
}

// assign makes p the data block of b, for now here only.
func (v *Volume) assign(b, p uint64, replaces bool) (many bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.maps.get(b / leafBlocks); m != nil {
		m.Entries[b%leafBlocks] = blockstore.MappedTo(p)
	}
	v.pending[b] = p
	v.replace = v.replace || replaces
	v.armLocked()
	return len(v.pending) >= pushMany
}

func sortedAssignments(pending map[uint64]uint64) []blockstore.Assignment {
	if len(pending) == 0 {
		return nil
	}
	list := make([]blockstore.Assignment, 0, len(pending))
	for b, p := range pending {
		list = append(list, blockstore.Assignment{Virtual: b, Data: p})
	}
	slices.SortFunc(list, func(a, b blockstore.Assignment) int {
		if a.Virtual < b.Virtual {
			return -1
		}
		return 1
	})
	return list
}

// claims are ranges of virtual blocks whose mappings somebody is changing.
type claims struct {
	mu    sync.Mutex
	freed *sync.Cond
	taken []claim
}

type claim struct{ from, to uint64 }

func (c *claims) init() { c.freed = sync.NewCond(&c.mu) }

// take waits until nobody has any of [from, to) and takes it.
func (c *claims) take(from, to uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for slices.ContainsFunc(c.taken, func(o claim) bool { return from < o.to && o.from < to }) {
		c.freed.Wait()
	}
	c.taken = append(c.taken, claim{from, to})
}

// drop lets go of the claim that starts at from.
func (c *claims) drop(from uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.taken, func(o claim) bool { return o.from == from })
	c.taken = slices.Delete(c.taken, i, i+1)
	c.freed.Broadcast()
}
