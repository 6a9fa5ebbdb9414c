package blockstore

import (
	"sync"
	"time"
)

// Pool is an open pool. Its methods may be called by several goroutines.
//
// Lock order: growing, commitMu, mu. None is held while an Owner is asked for
// something, and mu not while the disk is waited for, except to read a node
// that is not cached.
type Pool struct {
	idx  index
	data DataFile
	stop chan struct{} // closed by Close

	blockSize int64  // bytes; immutable
	instance  string // immutable
	busy      sync.WaitGroup

	growing  sync.Mutex // one growth of the data file at a time
	commitMu sync.Mutex // one commit at a time

	// reading is held for reading by those who look a mapping up and read
	// its block without owning the device; see Reserve.
	reading sync.RWMutex

	mu       sync.Mutex // protects all below
	sb       superblock // as the open transaction will write it
	devs     map[uint32]*device
	names    map[string]uint32
	refs     *refTable
	nodeRefs map[uint64]uint32 // parents of nodes that have more than one
	cache    *nodeCache        // durable nodes
	open     *transaction
	sealed   *transaction // being made durable; nil between commits
	durable  uint64       // the last transaction that is
	freed    uint64       // counts publications that freed something

	reserved map[uint64]Owner // blocks promised to somebody
	reclaim  []uint64         // nodes that lost a parent, durably
	trash    []uint64         // nodes whose records the next commit deletes
	punch    bitmap           // free blocks whose space is to be given back
	punching [2]uint64        // blocks from, to: being punched now
	noPunch  bool             // the file system cannot
	pins     *pins            // what the metadata snapshot keeps; nil without one

	mode      Mode
	cause     error // why the mode is ReadOnly or Failed
	full      bool  // waited in vain for space: errors at once until there is some
	waiters   int   // writers waiting for space
	extending bool  // an autoextend is about to run
	low       bool  // free space is at or below the low-water mark
	closed    bool
	changed   chan struct{} // closed, and replaced, when any of the state above changes
	timer     *time.Timer   // commits the open transaction
	hostSeen  time.Time     // when hostLeft was asked for
	hostLeft  int64         // bytes the host's file system can still give to data
}

// commitInterval is how long a change that nobody flushes may stay only in
// memory. dm-thin's COMMIT_PERIOD is a second, but a commit there costs a
// cache flush of the disk; here it writes out all that is dirty in the data
// file, and whoever writes meanwhile waits for that. Five seconds is what
// file systems take (ext4's commit=, the txg timeout of ZFS).
const commitInterval = 5 * time.Second

// newPool starts a pool over what idx and data hold.
func newPool(idx index, data DataFile) (*Pool, error) {
	p := &Pool{idx: idx, data: data, stop: make(chan struct{}), changed: make(chan struct{}), reserved: map[uint64]Owner{}}
	if err := p.load(); err != nil {
		return nil, err
	}
	if err := p.fitData(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.spaceChangedLocked()
	p.mu.Unlock()
	p.busy.Go(p.reclaimLoop)
	p.busy.Go(p.punchLoop)
	return p, nil
}

// broadcastLocked wakes all who wait for a change of state.
func (p *Pool) broadcastLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// wait blocks until cond, which is called with mu held, is true or the pool
// is closed.
func (p *Pool) wait(cond func() bool) {
	for {
		p.mu.Lock()
		ok, ch := cond() || p.closed, p.changed
		p.mu.Unlock()
		if ok {
			return
		}
		<-ch
	}
}

// Close makes everything durable and lets go of the pool. The error is of
// the last commit.
func (p *Pool) Close() error {
	err := p.Commit()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.broadcastLocked()
	p.mu.Unlock()
	close(p.stop)
	p.busy.Wait()
	// Records of dead nodes may be left to delete; open would find them too.
	if len(p.trash) > 0 && err == nil && p.mode != ReadOnly && p.mode != Failed {
		err = p.idx.commit(p.trashRecords(), nil)
	}
	if e := p.idx.close(); err == nil {
		err = e
	}
	if e := p.data.Close(); err == nil {
		err = e
	}
	return err
}

// dirtyLocked notes that the open transaction has something to commit and
// sees to it that it is committed in time.
func (p *Pool) dirtyLocked() {
	if p.open.dirty {
		return
	}
	p.open.dirty = true
	if p.timer == nil {
		p.timer = time.AfterFunc(commitInterval, p.tick)
		return
	}
	p.timer.Reset(commitInterval)
}

// tick commits what nobody has asked to be committed. When that is not
// possible now, because the disk is full, it is tried again; when it never
// will be, the mode shows it.
func (p *Pool) tick() {
	err := p.Commit()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && p.open.dirty && !p.closed && p.mode < ReadOnly {
		p.timer.Reset(commitInterval)
	}
}
