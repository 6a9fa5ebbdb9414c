package fs

import (
	"maps"
	"runtime/debug"
	"sync"
)

// table knows every node that the kernel remembers, and every directory that
// such a node lies in. table.mu is a leaf.
type table struct {
	mu    sync.Mutex
	byID  map[uint64]*node
	byKey map[uint64]*node // by identity on disk, see FS.identity
	next  uint64           // the last id given out
	gone  func(*node)      // called, without mu, for a node that is forgotten. Immutable.

	forgotten int // nodes taken out since memory was last given back. Protected by mu.
}

func newTable(gone func(*node)) *table {
	return &table{byID: map[uint64]*node{}, byKey: map[uint64]*node{}, next: 1, gone: gone}
}

// get returns the node with this id, or nil.
func (t *table) get(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// find returns the node with this identity and counts a lookup, or nil.
func (t *table) find(key uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byKey[key]
	if n != nil {
		n.lookups++
	}
	return n
}

// count1 counts a lookup of n.
func (t *table) count1(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.lookups++
}

// all returns every node.
func (t *table) all() []*node {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*node, 0, len(t.byID))
	for _, n := range t.byID {
		out = append(out, n)
	}
	return out
}

// peek is find without counting.
func (t *table) peek(key uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byKey[key]
}

// insert adds n under key and counts a lookup. When another node has the key
// already, that one is returned instead, unless fresh says that n was just
// made on disk, so that the other must be of a removed file whose inode
// number came again.
func (t *table) insert(n *node, key uint64, fresh bool) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.byKey[key]; old != nil {
		if !fresh {
			old.lookups++
			return old
		}
		t.dropKeyLocked(old, key)
	}
	t.next++
	n.id = t.next
	n.keys[0] = key
	n.lookups = 1
	t.byID[n.id] = n
	t.byKey[key] = n
	return n
}

// alias makes n known by another identity too: the file in the upper that it
// was copied to.
func (t *table) alias(n *node, key uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.byKey[key]; old != nil && old != n {
		t.dropKeyLocked(old, key)
	}
	if n.keys[1] == 0 {
		n.keys[1] = key
	}
	t.byKey[key] = n
}

// rekey makes n known by key instead of what it was found by so far.
func (t *table) rekey(n *node, key uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropKeyLocked(n, n.keys[0])
	if old := t.byKey[key]; old != nil && old != n {
		t.dropKeyLocked(old, key)
	}
	n.keys[0] = key
	t.byKey[key] = n
}

// dropKey forgets an identity of n, whose inode is about to be free for reuse.
func (t *table) dropKey(n *node, key uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropKeyLocked(n, key)
}

func (t *table) dropKeyLocked(n *node, key uint64) {
	if t.byKey[key] == n {
		delete(t.byKey, key)
	}
	for i := range n.keys {
		if n.keys[i] == key {
			n.keys[i] = 0
		}
	}
}

// addKid counts places in dir.
func (t *table) addKid(dir *node, delta int) {
	t.mu.Lock()
	dir.kids += delta
	gone := t.reapLocked(dir)
	t.mu.Unlock()
	t.release(gone)
}

// forget takes back count lookups of the node.
func (t *table) forget(id, count uint64) {
	t.mu.Lock()
	n := t.byID[id]
	if n == nil {
		t.mu.Unlock()
		return
	}
	n.lookups -= min(count, n.lookups)
	gone := t.reapLocked(n)
	t.mu.Unlock()
	t.release(gone)
}

// reapLocked takes n out when nothing needs it any more.
func (t *table) reapLocked(n *node) *node {
	if n.lookups > 0 || n.kids > 0 || n.id == rootID || t.byID[n.id] != n {
		return nil
	}
	delete(t.byID, n.id)
	for _, k := range n.keys {
		if k != 0 && t.byKey[k] == n {
			delete(t.byKey, k)
		}
	}
	if t.forgotten++; t.forgotten >= manyForgotten && t.forgotten > 4*len(t.byID) {
		t.shrinkLocked()
	}
	return n
}

// manyForgotten nodes take some 30 MB.
const manyForgotten = 1 << 16

// shrinkLocked gives back what the kernel made us keep while somebody walked a
// big tree: Go's maps do not shrink, and without work no collection comes for minutes.
func (t *table) shrinkLocked() {
	t.forgotten = 0
	t.byID, t.byKey = shrunk(t.byID), shrunk(t.byKey)
	go debug.FreeOSMemory()
}

// shrunk is maps.Clone, which would keep the size of the old table.
func shrunk(m map[uint64]*node) map[uint64]*node {
	out := make(map[uint64]*node, len(m))
	maps.Copy(out, m)
	return out
}

func (t *table) release(n *node) {
	if n != nil {
		t.gone(n)
	}
}

func (t *table) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}
