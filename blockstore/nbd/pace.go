package nbd

import (
	"sync/atomic"
	"time"
)

const (
	// Handing a request to another goroutine costs about as much as a read
	// of a few KiB from the page cache. It pays when others can run or be
	// received meanwhile and this one takes a good deal longer.
	briefBusy  = int64(50 * time.Microsecond)
	briefQuiet = int64(200 * time.Microsecond)

	// Copying takes time as well, which is not waited for and not counted:
	// a second core would have to fetch the same bytes into its own cache.
	// Measured on two cores: reads and writes of 1 MiB from and to the page
	// cache are up to a quarter faster when the reader runs them.
	bytesPerNano = 5
	briefSize    = pieceSize // larger requests go to workers, and are not counted

	// One slow request among many should not be remembered for long.
	paceMax = int64(time.Millisecond)
)

// pace is a moving average of how long the export lets requests wait. It
// decides whether the reader runs the next one itself: with the data in the
// page cache that is the fastest way by far, with a disk to wait for the
// requests behind it would have to wait too.
type pace struct{ ns atomic.Int64 }

// sample counts a request of n bytes that began at start.
func (p *pace) sample(n int, start time.Time) {
	if n > briefSize {
		return
	}
	ns := int64(time.Since(start)) - int64(n)/bytesPerNano
	ns = min(max(ns, 0), paceMax)
	old := p.ns.Load()
	p.ns.Store(old + (ns-old)/8) // a sample lost to another goroutine does no harm
}

// brief says whether a request of n bytes is likely to be done soon; quiet,
// that it is the only one.
func (p *pace) brief(n int, quiet bool) bool {
	limit := briefBusy
	if quiet {
		limit = briefQuiet
	}
	return n <= briefSize && p.ns.Load() < limit
}
