package fs

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/stub"
)

var (
	errNoPools  = errors.New("this mount has no way to start a pool process")
	errNoShared = errors.New("it is in a shared pool: mount with pool=DIR")
)

const (
	// fileIdle is how long a device stays open that nobody uses, poolIdle how
	// long a pool of which no device is open: to start its process again takes
	// some 50 ms, as much as it takes to read 100 MB.
	fileIdle = 2 * time.Second
	poolIdle = 15 * time.Second
	// manyIdle is how many devices may stay open that nobody uses.
	manyIdle  = 64
	lookEvery = 500 * time.Millisecond
)

// fileKey names a device.
type fileKey struct {
	pool   *pool
	device string
}

// blockFiles are the devices that are open, and what is to be done to devices
// beside the requests: noting that their files are in place, and removing them.
type blockFiles struct {
	pools pools
	log   func(format string, args ...any) // immutable

	adopting sync.Mutex // held while a copied stub gets its snapshot

	mu      sync.Mutex
	open    map[fileKey]*blockFile
	opening map[fileKey]chan struct{} // closed when that is done
	jobs    []func() error            // errAgain: not yet
	worker  chan struct{}             // closed when the goroutine that looks after all this ends; nil while none runs
	closing bool
	wake    chan struct{}
}

// errAgain says that a job has to be tried again.
var errAgain = errors.New("again")

func (bf *blockFiles) init(opener stub.Pools, log func(string, ...any)) {
	bf.pools.opener, bf.log = opener, log
	bf.open, bf.opening = map[fileKey]*blockFile{}, map[fileKey]chan struct{}{}
	bf.wake = make(chan struct{}, 1)
}

// acquire returns the open device key, opening it if need be; release must be
// called. One that was opened to be read, in a branch that has become writable
// since, is opened anew for those who write, or EBUSY.
func (bf *blockFiles) acquire(key fileKey, write bool, open func() (*blockFile, error)) (*blockFile, error) {
	for {
		bf.mu.Lock()
		if d := bf.open[key]; d != nil && (d.write || !write) {
			d.refs++
			bf.mu.Unlock()
			return d, nil
		} else if d != nil && d.refs > 0 {
			bf.mu.Unlock()
			return nil, unix.EBUSY
		} else if d != nil {
			bf.takeLocked(key)
			bf.mu.Unlock()
			bf.closeTaken(d)
			continue
		}
		wait := bf.opening[key]
		if wait == nil {
			break
		}
		bf.mu.Unlock()
		<-wait
	}
	done := make(chan struct{})
	bf.opening[key] = done
	bf.mu.Unlock()
	d, err := open()
	bf.mu.Lock()
	defer bf.mu.Unlock()
	delete(bf.opening, key)
	close(done)
	if err != nil {
		return nil, err
	}
	d.refs = 1
	bf.open[key] = d
	bf.workLocked()
	return d, nil
}

func (bf *blockFiles) release(d *blockFile) {
	bf.mu.Lock()
	defer bf.mu.Unlock()
	if d.refs--; d.refs == 0 {
		d.used = time.Now()
	}
}

// known returns the size of a device that is open.
func (bf *blockFiles) known(key fileKey) (size int64, ok bool) {
	bf.mu.Lock()
	defer bf.mu.Unlock()
	if d := bf.open[key]; d != nil {
		return d.blocks.Size(), true
	}
	return 0, false
}

func (bf *blockFiles) count() int {
	bf.mu.Lock()
	defer bf.mu.Unlock()
	return len(bf.open)
}

// timesOf returns the times that an open device keeps for its stub, nil for none.
func (bf *blockFiles) timesOf(key fileKey) *times {
	bf.mu.Lock()
	defer bf.mu.Unlock()
	if d := bf.open[key]; d != nil {
		return d.times.Load()
	}
	return nil
}

// later has job done soon, beside the requests.
func (bf *blockFiles) later(job func() error) {
	bf.mu.Lock()
	defer bf.mu.Unlock()
	bf.jobs = append(bf.jobs, job)
	bf.workLocked()
	select {
	case bf.wake <- struct{}{}:
	default:
	}
}

// workLocked starts the goroutine that looks after devices and pools. mu is held.
func (bf *blockFiles) workLocked() {
	if bf.worker == nil && !bf.closing {
		bf.worker = make(chan struct{})
		go bf.work(bf.worker)
	}
}

func (bf *blockFiles) work(done chan struct{}) {
	defer close(done)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		bf.runJobs()
		bf.closeIdle(fileIdle)
		busy := false
		for _, p := range bf.pools.all() {
			closed, err := p.closeIdle(poolIdle)
			if err != nil {
				bf.log("pool %s: %v", p.name, err)
			}
			busy = busy || !closed
		}
		bf.mu.Lock()
		if bf.closing || !busy && len(bf.jobs) == 0 && len(bf.open) == 0 && len(bf.opening) == 0 {
			bf.worker = nil
			bf.mu.Unlock()
			return
		}
		bf.mu.Unlock()
		select {
		case <-tick.C:
		case <-bf.wake:
		}
	}
}

// runJobs does what is to be done, and keeps what cannot be done yet.
func (bf *blockFiles) runJobs() {
	bf.mu.Lock()
	jobs := bf.jobs
	bf.jobs = nil
	bf.mu.Unlock()
	for _, job := range jobs {
		if err := job(); errors.Is(err, errAgain) {
			bf.mu.Lock()
			bf.jobs = append(bf.jobs, job)
			bf.mu.Unlock()
		} else if err != nil {
			bf.log("%v", err)
		}
	}
}

// closeIdle closes devices that nobody has used for idle, and the rest when
// there are many.
func (bf *blockFiles) closeIdle(idle time.Duration) {
	bf.mu.Lock()
	unused := 0
	for _, d := range bf.open {
		if d.refs == 0 {
			unused++
		}
	}
	var list []*blockFile
	for key, d := range bf.open {
		if d.refs == 0 && (unused > manyIdle || time.Since(d.used) >= idle) {
			list = append(list, d)
			bf.takeLocked(key)
			unused--
		}
	}
	bf.mu.Unlock()
	for _, d := range list {
		bf.closeTaken(d)
	}
}

// takeLocked takes a device out that is about to be closed; who wants it
// meanwhile waits until closeTaken is done. mu is held.
func (bf *blockFiles) takeLocked(key fileKey) {
	delete(bf.open, key)
	bf.opening[key] = make(chan struct{})
}

func (bf *blockFiles) closeTaken(d *blockFile) {
	if err := d.close(); err != nil {
		bf.log("device %s of pool %s: %v", d.key.device, d.key.pool.name, err)
	}
	d.key.pool.done()
	bf.mu.Lock()
	defer bf.mu.Unlock()
	close(bf.opening[d.key])
	delete(bf.opening, d.key)
}

// remove deletes a device whose file is no more.
func (bf *blockFiles) remove(key fileKey) error {
	bf.mu.Lock()
	if bf.opening[key] != nil {
		bf.mu.Unlock()
		return errAgain
	}
	d := bf.open[key]
	switch {
	case d != nil && d.refs > 0:
		bf.mu.Unlock()
		return errAgain
	case d != nil:
		bf.takeLocked(key)
		bf.mu.Unlock()
		bf.closeTaken(d)
	default:
		bf.mu.Unlock()
	}
	err := key.pool.with(func(s stub.Store) error { return s.Delete(key.device) })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("device %s of pool %s, whose file is gone, stays: %w", key.device, key.pool.name, err)
	}
	return nil
}

// closeTries is how often jobs that have to wait are tried at the end.
const closeTries = 20

// finish does all that is left to be done and closes all devices.
func (bf *blockFiles) finish() error {
	bf.mu.Lock()
	bf.closing = true
	worker := bf.worker
	bf.mu.Unlock()
	if worker != nil {
		select {
		case bf.wake <- struct{}{}:
		default:
		}
		<-worker
	}
	for range closeTries {
		bf.runJobs()
		bf.closeIdle(0)
		bf.mu.Lock()
		left := len(bf.jobs) + len(bf.opening)
		bf.mu.Unlock()
		if left == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	bf.mu.Lock()
	rest := bf.open
	bf.open = map[fileKey]*blockFile{}
	bf.mu.Unlock()
	var all error
	for _, d := range rest {
		all = errors.Join(all, d.close())
		d.key.pool.done()
	}
	return all
}

// close closes the pools, after finish.
func (bf *blockFiles) close() error {
	var all error
	for _, p := range bf.pools.all() {
		_, err := p.closeIdle(-1)
		all = errors.Join(all, err)
	}
	return all
}
