package nbd

import (
	"sync"
	"sync/atomic"
)

// Limits of what requests may hold. The reserve of a connection is as large
// as the largest single need (a whole simple reply), so that a connection
// that holds nothing is never refused.
const (
	pieceSize   = 1 << 20   // a larger payload is moved in pieces of this
	wholeSize   = 4 << 20   // up to this a simple or DF read is one buffer all the same
	reserveSize = wholeSize // per connection, whatever the others hold
	connLimit   = 32 << 20  // per connection, reserve included
	sharedLimit = 256 << 20 // over all connections, reserves excluded
	maxRequests = 64        // per connection, from its header to its reply on the wire
)

// buffer is memory for one payload; class is an index into classes, or -1
// for one that is not pooled.
type buffer struct {
	b     []byte
	class int
}

// classes are the sizes of pooled buffers: small requests, the store's
// blocks, what nbdcopy and readahead ask for, pieces.
var classes = [...]int{4 << 10, 64 << 10, 256 << 10, pieceSize}

var pools [len(classes)]sync.Pool

func classOf(n int) int {
	for i, size := range classes {
		if n <= size {
			return i
		}
	}
	return -1
}

// footprint is what a buffer for n bytes takes.
func footprint(n int) int64 {
	if i := classOf(n); i >= 0 {
		return int64(classes[i])
	}
	return int64(n)
}

// footprint is what b takes; a nil buffer takes nothing.
func (b *buffer) footprint() int64 {
	if b == nil {
		return 0
	}
	return int64(cap(b.b))
}

// getBuffer returns a buffer whose b is n bytes long, with any content.
func getBuffer(n int) *buffer {
	i := classOf(n)
	if i < 0 {
		return &buffer{make([]byte, n), i}
	}
	b, _ := pools[i].Get().(*buffer)
	if b == nil {
		b = &buffer{make([]byte, classes[i]), i}
	}
	b.b = b.b[:n]
	return b
}

// put gives the buffer back; a nil buffer has nothing to give.
func (b *buffer) put() {
	if b != nil && b.class >= 0 {
		pools[b.class].Put(b)
	}
}

// quota is what the connections of a server hold beyond their reserves.
type quota struct {
	used atomic.Int64
	max  int64
}

func (q *quota) take(n int64) bool {
	if q.used.Add(n) > q.max {
		q.used.Add(-n)
		return false
	}
	return true
}

// budget admits the requests of one connection. It waits for memory that
// the connection itself holds, never for that of others: when the shared
// quota is used up, a connection lives on its reserve.
type budget struct {
	shared *quota

	mu       sync.Mutex
	freed    sync.Cond
	requests int
	bytes    int64
	closed   bool
}

func newBudget(shared *quota) *budget {
	b := &budget{shared: shared}
	b.freed.L = &b.mu
	return b
}

// admit takes a place for requests (0 or 1) and n bytes. When it would have
// to wait it calls flush first, because what the caller has not sent yet is
// part of what holds the place. It returns false once the budget is closed.
func (b *budget) admit(requests int, n int64, flush func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for flushed := false; !b.closed && !b.takeLocked(requests, n); {
		if flushed {
			b.freed.Wait()
			continue
		}
		flushed = true
		b.mu.Unlock()
		flush()
		b.mu.Lock()
	}
	return !b.closed
}

func (b *budget) takeLocked(requests int, n int64) bool {
	if b.requests+requests > maxRequests || b.bytes > 0 && b.bytes+n > connLimit {
		return false
	}
	if more := beyond(b.bytes+n) - beyond(b.bytes); more > 0 && !b.shared.take(more) {
		return false
	}
	b.requests += requests
	b.bytes += n
	return true
}

// release gives back what admit took.
func (b *budget) release(requests int, n int64) {
	if requests == 0 && n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shared.used.Add(beyond(b.bytes-n) - beyond(b.bytes))
	b.requests -= requests
	b.bytes -= n
	b.freed.Broadcast()
}

// beyond is the part of n that exceeds the reserve.
func beyond(n int64) int64 { return max(0, n-reserveSize) }

// idle reports that no request is being served.
func (b *budget) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests == 0
}

// close lets nobody wait any more.
func (b *budget) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.freed.Broadcast()
}

// end gives back what the connection still holds, because it ended between
// admit and release.
func (b *budget) end() {
	b.release(b.requests, b.bytes)
}
