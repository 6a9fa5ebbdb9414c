package blockstore

import "math/bits"

// bitmap is a set of data blocks that takes memory only where it has members.
type bitmap struct {
	words map[uint64]*[chunkBlocks / 64]uint64
	n     int
}

func (m *bitmap) add(b uint64) {
	c := b / chunkBlocks
	if m.words[c] == nil {
		if m.words == nil {
			m.words = map[uint64]*[chunkBlocks / 64]uint64{}
		}
		m.words[c] = new([chunkBlocks / 64]uint64)
	}
	w := &m.words[c][b%chunkBlocks/64]
	if *w&(1<<(b%64)) == 0 {
		*w |= 1 << (b % 64)
		m.n++
	}
}

func (m *bitmap) has(b uint64) bool {
	c := m.words[b/chunkBlocks]
	return c != nil && c[b%chunkBlocks/64]&(1<<(b%64)) != 0
}

func (m *bitmap) remove(b uint64) {
	if m.has(b) {
		m.words[b/chunkBlocks][b%chunkBlocks/64] &^= 1 << (b % 64)
		m.n--
	}
}

// run returns a stretch of consecutive members, from and to.
func (m *bitmap) run() (from, to uint64, ok bool) {
	for c, words := range m.words {
		for i, w := range words {
			if w == 0 {
				continue
			}
			from = c*chunkBlocks + uint64(i)*64 + uint64(bits.TrailingZeros64(w))
			for to = from + 1; m.has(to); to++ {
			}
			return from, to, true
		}
		delete(m.words, c)
	}
	return 0, 0, false
}
