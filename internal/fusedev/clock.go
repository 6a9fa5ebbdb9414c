package fusedev

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// One reader is enough while requests come one after the other: it is awake when the
// next one comes, and the kernel has nobody else to wake up. When it is kept
// by a request, or cannot keep up, the clock sends others.
const (
	// tick is how long a request keeps the others waiting, at most twice that.
	tick = 500 * time.Microsecond
	// busyTicks is how many more ticks that found requests waiting than ticks that found
	// none mean that one more reader is wanted. That nobody is at the device says little: a
	// caller that shares the reader's processor runs on before the reader comes back.
	busyTicks = 8
	// slackTicks in a row at which a reader was to be had mean that one less is.
	slackTicks = 32
	// idleTicks in a row without a request stop the clock.
	idleTicks = 20
)

// maxWanted is how many readers may wait at the device.
var maxWanted = int32(2 * runtime.NumCPU())

// clock is the state of the clock, which only its goroutine uses.
type clock struct {
	last        uint64 // requests seen at the last tick
	busy        int    // ticks that found requests waiting, less those that did not
	slack, idle int    // ticks in a row
}

// watch sees to it that the clock runs. It is called with each request.
func (c *Conn) watch() {
	if !c.ticking.Load() && c.ticking.CompareAndSwap(false, true) {
		c.gone.Go(c.runClock)
	}
}

// runClock looks at the readers at every tick until there is nothing to do.
func (c *Conn) runClock() {
	t := clock{last: c.seen.Load()}
	for !c.dead.Load() {
		time.Sleep(tick)
		now := c.seen.Load()
		if c.look(&t, now) {
			c.start()
		}
		t.last = now
		if t.idle < idleTicks {
			continue
		}
		c.wanted.Store(1)
		c.input.cool()
		c.ticking.Store(false)
		// A request that came just before has seen the clock running.
		if c.seen.Load() == now || !c.ticking.CompareAndSwap(false, true) {
			return
		}
	}
}

// look is one tick, at which now requests were seen; true asks for another reader.
func (c *Conn) look(t *clock, now uint64) bool {
	waiting := c.waiting.Load()
	if waiting == 0 && c.pending() {
		t.busy++
	} else {
		t.busy = max(0, t.busy-1)
	}
	t.slack = countIf(waiting > 0, t.slack)
	t.idle = countIf(waiting > 0 && now == t.last, t.idle)
	switch {
	case t.busy >= busyTicks && c.wanted.Load() < maxWanted:
		t.busy = 0
		c.wanted.Add(1)
		return true
	case t.slack >= slackTicks && c.wanted.Load() > 1:
		t.slack = 0
		c.wanted.Add(-1) // one of them leaves after its next request
	}
	return waiting == 0 && now == t.last
}

// pending says whether a request waits for a reader (fuse_dev_poll).
func (c *Conn) pending() bool {
	c.fdMu.RLock()
	defer c.fdMu.RUnlock()
	if c.closed {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return n == 1 && err == nil
}

// countIf counts on when is is true, else from the beginning.
func countIf(is bool, n int) int {
	if is {
		return n + 1
	}
	return 0
}
