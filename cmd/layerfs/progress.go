package main

import (
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/sys/unix"
)

// progress shows on a terminal how far long work is; elsewhere it shows nothing. A
// nil one is none.
type progress struct{ bar *progressbar.ProgressBar }

// progressDelay keeps short work from showing anything.
const progressDelay = 300 * time.Millisecond

// newProgress begins to show work on size bytes, -1 when that is not known.
func newProgress(what string, size int64) *progress {
	if _, err := unix.IoctlGetTermios(2, unix.TCGETS); err != nil {
		return &progress{}
	}
	return &progress{progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(progressDelay),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionSetPredictTime(size > 0),
		progressbar.OptionFullWidth(),
	)}
}

// Write counts what was worked on.
func (p *progress) Write(b []byte) (int, error) {
	if p != nil && p.bar != nil {
		_ = p.bar.Add(len(b)) // a terminal that takes nothing must not stop the work
	}
	return len(b), nil
}

// done takes the line away.
func (p *progress) done() {
	if p != nil && p.bar != nil {
		_ = p.bar.Finish()
	}
}
