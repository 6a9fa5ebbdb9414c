package blockstore

// refTable counts, for every data block, the leaves that map it; a block
// with no count is free. A reserved block counts one. Chunks of the pool in
// which nothing was ever used take no memory. The pool's lock protects it.
type refTable struct {
	chunks []*refChunk
	n      uint64            // blocks in the pool
	used   uint64            // blocks with a count
	hint   uint64            // no block below it is free
	over   map[uint64]uint32 // counts that do not fit a chunk
}

const (
	chunkBlocks = 1 << 16
	manyRefs    = 255 // the count is in over
)

type refChunk struct {
	used  int
	count [chunkBlocks]uint8
}

func newRefTable(n uint64) *refTable {
	t := &refTable{over: map[uint64]uint32{}}
	t.resize(n)
	return t
}

// resize grows the table to n blocks.
func (t *refTable) resize(n uint64) {
	t.n = n
	for uint64(len(t.chunks))*chunkBlocks < n {
		t.chunks = append(t.chunks, nil)
	}
}

func (t *refTable) free() uint64 { return t.n - t.used }

// count returns how many leaves map block b.
func (t *refTable) count(b uint64) uint32 {
	c := t.chunks[b/chunkBlocks]
	if c == nil {
		return 0
	}
	if n := c.count[b%chunkBlocks]; n != manyRefs {
		return uint32(n)
	}
	return t.over[b]
}

// inc adds a reference to block b.
func (t *refTable) inc(b uint64) {
	i := b / chunkBlocks
	if t.chunks[i] == nil {
		t.chunks[i] = new(refChunk)
	}
	c := t.chunks[i]
	switch n := &c.count[b%chunkBlocks]; *n {
	case 0:
		c.used++
		t.used++
		*n = 1
	case manyRefs:
		t.over[b]++
	case manyRefs - 1:
		*n = manyRefs
		t.over[b] = manyRefs
	default:
		*n++
	}
}

// dec takes a reference from block b, which must have one, and reports
// whether the block is free now.
func (t *refTable) dec(b uint64) bool {
	c := t.chunks[b/chunkBlocks]
	n := &c.count[b%chunkBlocks]
	if *n == manyRefs {
		if t.over[b]--; t.over[b] < manyRefs {
			delete(t.over, b)
			*n--
		}
		return false
	}
	if *n--; *n > 0 {
		return false
	}
	c.used--
	t.used--
	t.hint = min(t.hint, b)
	return true
}

// take reserves up to n free blocks, the first ones in the pool for which
// usable is true: dm-thin's allocation is first-fit from the front too, and
// keeps free space together.
func (t *refTable) take(n int, usable func(uint64) bool) []uint64 {
	var out []uint64
	skipped := false
	b := t.hint
	for len(out) < n && b < t.n {
		c := t.chunks[b/chunkBlocks]
		if c != nil && (c.used == chunkBlocks || c.count[b%chunkBlocks] != 0) {
			if c.used == chunkBlocks {
				b = (b/chunkBlocks + 1) * chunkBlocks
			} else {
				b++
			}
			if !skipped {
				t.hint = min(b, t.n)
			}
			continue
		}
		if usable(b) {
			t.inc(b)
			out = append(out, b)
		} else {
			skipped = true
		}
		b++
		if !skipped {
			t.hint = b
		}
	}
	return out
}
