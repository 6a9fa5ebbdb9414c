package fusefile

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/layerfs/layerfs/internal/errs"
)

// node is a file that the kernel remembers.
type node struct {
	id      uint64 // immutable
	lookups uint64 // how often the kernel was told of it; protected by FS.mu

	openMu sync.Mutex             // held while the device is opened or closed
	opens  int                    // handles; changed with openMu and FS.mu held
	active atomic.Pointer[active] // the open device, or nil; changed with openMu held

	mu           sync.Mutex
	known        Entry // as last seen; protected by mu
	atime, mtime time.Time
	ctime        time.Time
}

func nodeID(e Entry) uint64 { return firstNode + uint64(e.ID) }

// active is an open device. Each running request has a reference, and so have
// all handles together.
type active struct {
	Device
	refs  atomic.Int64
	wrote atomic.Bool // since the last flush
}

// acquire takes a reference unless the device is closed already.
func (a *active) acquire() bool {
	for {
		n := a.refs.Load()
		if n == 0 {
			return false
		}
		if a.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release gives a reference back. The last one closes the device.
func (a *active) release() error {
	if a.refs.Add(-1) > 0 {
		return nil
	}
	return errors.Join(a.flushWritten(), a.Close())
}

// flush makes everything durable that was written before.
func (a *active) flush() error {
	a.wrote.Store(false)
	err := a.Flush()
	if err != nil {
		a.wrote.Store(true)
	}
	return err
}

// flushWritten flushes if anything was written. What another caller is flushing
// at the moment is not waited for: that is good enough for a close.
func (a *active) flushWritten() error {
	if !a.wrote.Load() {
		return nil
	}
	return a.flush()
}

// remember returns the node of e and counts a lookup.
func (f *FS) remember(e Entry) *node {
	f.mu.Lock()
	id := nodeID(e)
	n := f.nodes[id]
	if n == nil {
		n = &node{id: id, known: e, atime: f.started, mtime: f.started, ctime: f.started}
		f.nodes[id] = n
	}
	n.lookups++
	f.mu.Unlock()
	f.learn(n, e)
	return n
}

// node returns a node that the kernel remembers.
func (f *FS) node(id uint64) (*node, fuse.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.nodes[id]; n != nil {
		return n, fuse.OK
	}
	return nil, fuse.Status(syscall.ESTALE)
}

// Forget implements fuse.RawFileSystem.
func (f *FS) Forget(id, count uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.nodes[id]; n != nil {
		n.lookups -= min(count, n.lookups)
		f.dropLocked(n)
	}
}

// countOpenLocked counts handles of n. Preconditions: n.openMu is held.
func (f *FS) countOpenLocked(n *node, change int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n.opens += change
	f.dropLocked(n)
}

// dropLocked forgets n if nothing knows it any more: a forget may overtake
// the last release. Preconditions: f.mu is held.
func (f *FS) dropLocked(n *node) {
	if n.lookups == 0 && n.opens == 0 {
		delete(f.nodes, n.id)
	}
}

func (n *node) entry() Entry {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.known
}

// use returns the open device of a node for one request; release it after.
func (f *FS) use(id uint64) (*node, *active, fuse.Status) {
	n, code := f.node(id)
	if !code.Ok() {
		return nil, nil, code
	}
	if a := n.active.Load(); a != nil && a.acquire() {
		return n, a, fuse.OK
	}
	return nil, nil, fuse.EBADF // the mount has ended
}

// activateLocked opens n's device. Preconditions: n.openMu is held and the
// device is not open.
func (f *FS) activateLocked(n *node) error {
	name := n.entry().Name
	d, err := f.devices.Open(name)
	if err != nil {
		return notFoundIsStale(err)
	}
	// Only now that it is ours does the name stay what it is.
	e, err := f.devices.Lookup(name)
	if err == nil && nodeID(e) != n.id {
		err = syscall.ESTALE
	}
	if err == nil && f.notify != nil {
		err = f.notify.InvalInode(n.id, 0, 0)
	}
	if err != nil {
		return errors.Join(notFoundIsStale(err), d.Close())
	}
	a := &active{Device: d}
	a.refs.Store(1)
	n.active.Store(a)
	return nil
}

// deactivateLocked ends the use of n's device by its handles.
// Preconditions: n.openMu is held.
func (n *node) deactivateLocked() error {
	if a := n.active.Swap(nil); a != nil {
		return a.release()
	}
	return nil
}

// notFoundIsStale is for a device that was there when it was looked up: upon
// ESTALE the kernel looks the name up once more (path_openat, LOOKUP_REVAL).
func notFoundIsStale(err error) error {
	if errs.Of(err) == errs.NotFound {
		return syscall.ESTALE
	}
	return err
}
