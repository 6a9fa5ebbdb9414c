package fs

import (
	"slices"
	"sync"
	"time"
)

const (
	// maxRecents is how many files stay open for the next request.
	maxRecents = 256
	// recentTime is how long a file stays open after its last request, at least;
	// twice as long at most.
	recentTime = 500 * time.Millisecond
)

// recents are the nodes whose file stays open for a moment though the kernel has
// told of no open (Options.Opens): who reads or writes it will most likely go on.
// The zero value is ready.
type recents struct {
	mu      sync.Mutex // inside node.mu
	nodes   []*node    // the oldest first. Protected by mu.
	ticking bool       // sweep will come. Protected by mu.
	stopped bool       // Protected by mu.
}

// add notes that the file of n stays open; false when it must not.
// Preconditions: n.mu is held.
func (r *recents) add(n *node) bool {
	n.used = true
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped || n.recent {
		return n.recent
	}
	if len(r.nodes) >= maxRecents {
		r.evictLocked()
	}
	n.recent = true
	r.nodes = append(r.nodes, n)
	if !r.ticking {
		r.ticking = true
		time.AfterFunc(recentTime, r.sweep)
	}
	return true
}

// evictLocked closes the oldest that nobody works with at the moment.
// Preconditions: r.mu is held.
func (r *recents) evictLocked() {
	for i, n := range r.nodes {
		if !n.mu.TryLock() {
			continue
		}
		n.closeRecentLocked()
		n.mu.Unlock()
		r.nodes = slices.Delete(r.nodes, i, i+1)
		return
	}
}

// closeRecentLocked closes the file of n unless it has to stay open.
// Preconditions: n.mu is held.
func (n *node) closeRecentLocked() {
	n.recent = false
	if n.back != nil && len(n.names) > 0 {
		n.back.release()
		n.back = nil
	}
}

// sweep closes what was not used since the last sweep.
func (r *recents) sweep() {
	r.mu.Lock()
	nodes := r.nodes
	r.nodes = nil
	r.mu.Unlock()
	var stay []*node
	for _, n := range nodes {
		n.mu.Lock()
		if n.used {
			n.used = false
			stay = append(stay, n)
		} else {
			n.closeRecentLocked()
		}
		n.mu.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes = append(stay, r.nodes...)
	r.ticking = len(r.nodes) > 0 && !r.stopped
	if r.ticking {
		time.AfterFunc(recentTime, r.sweep)
	}
}

// stop ends the sweeps for good.
func (r *recents) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
}
