package nbd

import (
	"errors"
	"sync"
	"time"
)

// longTurn is how long a request may keep the reader from reading.
const longTurn = 5 * time.Millisecond

// errTaken ends the loop of a reader whose place was taken.
var errTaken = errors.New("nbd: another goroutine reads")

// turn watches what the reader does besides reading: running requests, and
// sending. When that is not done after longTurn, another goroutine becomes
// the reader and the old one ends as a worker. On a full pool a WRITE waits
// for space, and the TRIM that would make some may be the next request in
// the stream; and a client may send all it has before it reads any reply.
//
// The watch costs a short request no more than a lock: the timer runs on,
// and looks at what it finds, as long as there are such requests.
type turn struct {
	conn *conn

	mu      sync.Mutex
	since   time.Time // when the last turn began
	pace    *pace     // that let a request run here, or nil
	running bool
	armed   bool // the timer runs
}

// begin is called by the reader before it does anything that may take long.
func (t *turn) begin(p *pace) time.Time {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since, t.pace, t.running = now, p, true
	if !t.armed {
		t.armed = true
		time.AfterFunc(longTurn, t.check)
	}
	return now
}

// end says whether the caller is still the reader.
func (t *turn) end() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.running
	t.running = false
	return kept
}

// check is what the timer runs.
func (t *turn) check() {
	if t.expired() {
		t.conn.takeOver()
	}
}

// expired takes the turn away if it has lasted too long, and starts the
// timer again if there may be more to watch.
func (t *turn) expired() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := longTurn - time.Since(t.since)
	switch {
	case left > 0:
		time.AfterFunc(left, t.check)
		return false
	case !t.running:
		t.armed = false
		return false
	}
	t.running, t.armed = false, false
	if t.pace != nil {
		t.pace.ns.Store(paceMax) // the next ones go to workers
	}
	// The old reader counts as a worker from here on, and the new one has
	// not begun: the connection cannot be waiting for workers yet.
	t.conn.workers.Add(1)
	return true
}
