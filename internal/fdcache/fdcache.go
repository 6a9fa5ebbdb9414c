// Package fdcache bounds how many directory descriptors are open.
//
// A Slot belongs to one directory of one branch and is either empty or holds
// an O_PATH descriptor. Slots in use are pinned; the others are kept in
// least-recently-used order and closed when there are too many. A descriptor
// names an inode, not a path, so a cached one stays right when the directory
// or one of its ancestors is renamed.
//
// Cache.mu is a leaf: nothing is locked and nothing is opened under it.
package fdcache

import (
	"sync"

	"github.com/layerfs/layerfs/internal/sys"
)

// Slot is a place for one descriptor. The zero value is empty.
type Slot struct {
	fd         int // valid while cached
	cached     bool
	pins       int
	dropped    bool  // nothing is kept beyond its use
	prev, next *Slot // position in the LRU ring while cached
}

// Cache is a set of slots with a bound on the open ones.
type Cache struct {
	mu    sync.Mutex
	ring  Slot // ring.next is the most recently used
	n     int
	limit int // immutable
}

// New returns a cache that keeps at most limit descriptors beyond those in use.
func New(limit int) *Cache {
	c := &Cache{limit: limit}
	c.ring.next, c.ring.prev = &c.ring, &c.ring
	return c
}

// Acquire returns the descriptor of s, opened by open if need be, and pins
// it until Release.
func (c *Cache) Acquire(s *Slot, open func() (int, error)) (int, error) {
	c.mu.Lock()
	if s.cached {
		s.pins++
		s.unlink()
		c.push(s)
		c.mu.Unlock()
		return s.fd, nil
	}
	c.mu.Unlock()
	fd, err := open()
	if err != nil {
		return -1, err
	}
	c.mu.Lock()
	extra := -1
	if s.cached { // opened by two at once: keep the first
		extra = fd
	} else {
		s.fd, s.cached = fd, true
		c.push(s)
		c.n++
	}
	s.pins++
	victims := c.shrinkLocked()
	fd = s.fd
	c.mu.Unlock()
	if extra >= 0 {
		sys.Close(extra)
	}
	for _, v := range victims {
		sys.Close(v)
	}
	return fd, nil
}

// Release unpins the descriptor of s.
func (c *Cache) Release(s *Slot) { c.end(s, 1, false) }

// Drop closes the descriptor of s, when it is no longer in use. s stays usable,
// but its descriptor is not kept any more.
func (c *Cache) Drop(s *Slot) { c.end(s, 0, true) }

// end takes pins from s and closes its descriptor if that is due.
func (c *Cache) end(s *Slot, pins int, drop bool) {
	c.mu.Lock()
	s.pins -= pins
	s.dropped = s.dropped || drop
	fd := -1
	if s.cached && s.pins == 0 && s.dropped {
		fd = c.removeLocked(s)
	}
	c.mu.Unlock()
	if fd >= 0 {
		sys.Close(fd)
	}
}

// Purge closes every descriptor that is not in use.
func (c *Cache) Purge() {
	c.mu.Lock()
	keep := c.limit
	c.limit = 0
	victims := c.shrinkLocked()
	c.limit = keep
	c.mu.Unlock()
	for _, v := range victims {
		sys.Close(v)
	}
}

func (s *Slot) unlink() { s.prev.next, s.next.prev = s.next, s.prev }

// push puts s, which is in no ring, at the head.
func (c *Cache) push(s *Slot) {
	s.prev, s.next = &c.ring, c.ring.next
	s.next.prev = s
	c.ring.next = s
}

func (c *Cache) removeLocked(s *Slot) int {
	s.unlink()
	s.prev, s.next, s.cached = nil, nil, false
	c.n--
	return s.fd
}

// shrinkLocked takes the least recently used slots out until the limit is kept
// and returns their descriptors for closing.
func (c *Cache) shrinkLocked() (victims []int) {
	for s := c.ring.prev; s != &c.ring && c.n > c.limit; {
		prev := s.prev
		if s.pins == 0 {
			victims = append(victims, c.removeLocked(s))
		}
		s = prev
	}
	return victims
}
