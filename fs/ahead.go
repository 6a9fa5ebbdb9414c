package fs

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/layerfs/layerfs/branches"
)

const (
	// maxAhead is how many entries may be known ahead, some 500 bytes each.
	maxAhead = 8192
	// aheadWorkers is how many directories are read at the same time.
	aheadWorkers = 4
	// walkTime is within which time after its parent a directory must be read for that
	// to be a walk, and how long what was found ahead is kept.
	walkTime = 2 * time.Second
)

// ahead notices that somebody walks the tree and looks at what he will ask for
// next: the directories below the one that he reads, in the order in which he
// will come to them, each entry with its attributes (answers). When reads have to
// wait for the disk, the data of small files that come next is read too
// (aheadfiles.go). It goes no further than maxAhead entries and stops with the walk.
//
// Only directories that lie in branches that are only read are looked at: a
// change of such a directory, or of something in it, gives it a part in a writable
// branch, and by that answers which are out of date are known.
//
// ahead.mu is a leaf but for the branches' locks.
type ahead struct {
	fs *FS // immutable

	mu      sync.Mutex
	todo    []aheadJob                 // what comes next is last. Protected by mu.
	workers int                        // protected by mu
	known   map[*branches.Dir]*answers // protected by mu
	entries int                        // in known. Protected by mu.
	opened  map[*branches.Dir]struct{} // whose descriptors may be open because of us. Protected by mu.
	sweeps  bool                       // sweep will come. Protected by mu.
	walked  time.Time                  // when the walk went on last. Protected by mu.
	flushes int                        // protected by mu
	stopped bool                       // for good. Protected by mu.
	working sync.WaitGroup             // the workers

	slow atomic.Int64 // until when reads count as waiting for the disk, Unix nanoseconds
}

// aheadJob is a directory to be listed, or with files some of its files to be read.
type aheadJob struct {
	tree  *branches.Dir
	files []string
}

// answers is what was found in a directory.
type answers struct {
	parts   []*branches.Part // the directory was found in these
	entries []branches.Entry
	found   map[string]*branches.Resolution
	at      time.Time
}

// walks notes that somebody begins to read the directory n, of which known was
// found ahead. In a walk n is looked at if that was not done yet, and what lies below
// it will be next. It returns what is known now. Preconditions: n.dir.mu is held.
func (a *ahead) walks(n *node, known *answers) *answers {
	o := &a.fs.opts
	// Where the kernel keeps nothing, it asks for all again.
	if o.Outside || o.ShowMarks || o.Timeout == 0 || !a.isWalk(n) || known != nil {
		return known
	}
	a.forgetJob(n.dir.tree)
	if known = a.look(n.dir.tree, n.dir.tree.Parts()); known != nil {
		a.push(a.below(known)...)
	}
	return known
}

// forgetJob takes the directory d, to which the walk has come before us, out of
// what is to be done if it was next.
func (a *ahead) forgetJob(d *branches.Dir) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if last := len(a.todo) - 1; last >= 0 && a.todo[last].tree == d && a.todo[last].files == nil {
		a.todo = a.todo[:last]
	}
}

// isWalk reports whether n is read by somebody who has just read the directory that
// it lies in, or goes on with a walk.
func (a *ahead) isWalk(n *node) bool {
	now := time.Now()
	n.dir.readAt.Store(now.UnixNano())
	n.mu.Lock()
	var parent *node
	if len(n.names) > 0 {
		parent = n.names[0].dir
	}
	n.mu.Unlock()
	if parent == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Sub(a.walked) > walkTime && now.UnixNano()-parent.dir.readAt.Load() > int64(walkTime) {
		return false
	}
	a.walked = now
	return true
}

// onlyRead reports whether none of the parts can be changed.
func onlyRead(parts []*branches.Part) bool {
	return !slices.ContainsFunc(parts, func(p *branches.Part) bool { return p.Branch.Writable() })
}

// take returns what is known of the directory d, which has the given parts now;
// nil for nothing. It is known no longer.
func (a *ahead) take(d *branches.Dir, parts []*branches.Part) *answers {
	a.mu.Lock()
	defer a.mu.Unlock()
	found := a.known[d]
	if found == nil {
		return nil
	}
	a.dropLocked(d)
	a.startLocked()
	if !slices.Equal(found.parts, parts) {
		return nil
	}
	return found
}

// giveBack keeps what of the answers was not needed yet.
func (a *ahead) giveBack(d *branches.Dir, found *answers) {
	if found == nil || len(found.found) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keepLocked(d, found)
}

// keepLocked makes found known. Preconditions: a.mu is held.
func (a *ahead) keepLocked(d *branches.Dir, found *answers) {
	a.dropLocked(d)
	if a.known == nil {
		a.known = map[*branches.Dir]*answers{}
	}
	a.known[d] = found
	a.entries += len(found.found)
	a.sweepLaterLocked()
}

// sweepLaterLocked has what nobody wants forgotten in a while. Preconditions: a.mu is held.
func (a *ahead) sweepLaterLocked() {
	if !a.sweeps && !a.stopped {
		a.sweeps = true
		time.AfterFunc(walkTime, a.sweep)
	}
}

// opensLocked notes that d, and by that the directories above it, are about to be
// opened: most of those that are found ahead belong to no node yet, or never will.
// Preconditions: a.mu is held.
func (a *ahead) opensLocked(d *branches.Dir) {
	if a.opened == nil {
		a.opened = map[*branches.Dir]struct{}{}
	}
	for d != nil {
		a.opened[d] = struct{}{}
		d, _ = d.Place()
	}
	a.sweepLaterLocked()
}

// closeLocked gives up the descriptors that are open because of us; those of nodes will
// be opened again. Preconditions: a.mu is held.
func (a *ahead) closeLocked() {
	for d := range a.opened {
		d.Close()
	}
	a.opened = nil
}

// dropLocked forgets what is known of d. Preconditions: a.mu is held.
func (a *ahead) dropLocked(d *branches.Dir) {
	if old := a.known[d]; old != nil {
		a.entries -= len(old.found)
		delete(a.known, d)
	}
}

// sweep forgets what nobody has asked for, and after a walk what it has opened.
func (a *ahead) sweep() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for d, found := range a.known {
		if time.Since(found.at) > walkTime {
			a.dropLocked(d)
		}
	}
	if time.Since(a.walked) > walkTime {
		a.todo = nil
	}
	if len(a.known) == 0 && len(a.todo) == 0 && a.workers == 0 {
		a.closeLocked()
	}
	a.sweeps = false
	if len(a.known) > 0 || len(a.opened) > 0 {
		a.sweepLaterLocked()
	}
}

// stop ends the work for good and waits for what is being looked at.
func (a *ahead) stop() {
	a.mu.Lock()
	a.stopped = true
	a.mu.Unlock()
	a.flush()
	a.working.Wait()
	a.flush() // what was found until then
}

// flush forgets everything: the branches are about to change. Preconditions: nothing
// is being looked at, because the gate is shut.
func (a *ahead) flush() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.todo = nil
	a.flushes++
	for d := range a.known {
		a.dropLocked(d)
	}
	a.closeLocked()
}

// push has jobs done, the last one first.
func (a *ahead) push(jobs ...aheadJob) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.todo = append(a.todo, jobs...)
	if over := len(a.todo) - maxAhead; over > 0 {
		a.todo = slices.Delete(a.todo, 0, over)
	}
	a.startLocked()
}

// startLocked starts a worker if there is work for it. Preconditions: a.mu is held.
func (a *ahead) startLocked() {
	if len(a.todo) > 0 && a.workers < aheadWorkers && a.entries < maxAhead && !a.stopped {
		a.workers++
		a.working.Go(a.work)
	}
}

// work does jobs until there is none, or enough is known, or the walk has ended.
func (a *ahead) work() {
	for {
		a.mu.Lock()
		if a.stopped || time.Since(a.walked) > walkTime {
			a.todo = nil
		}
		if len(a.todo) == 0 || a.entries >= maxAhead {
			a.workers--
			a.mu.Unlock()
			return
		}
		last := len(a.todo) - 1
		job, flushes := a.todo[last], a.flushes
		a.todo = a.todo[:last]
		a.startLocked()
		a.mu.Unlock()
		a.do(job, flushes)
	}
}

// do does one job, that was taken after so many flushes. What fails is asked for again by
// the one who needs it.
func (a *ahead) do(job aheadJob, flushes int) {
	a.fs.gate.Enter()
	defer a.fs.gate.Leave()
	a.mu.Lock()
	outdated := a.flushes != flushes // the branches have changed before the gate was open again
	if !outdated {
		a.opensLocked(job.tree)
	}
	a.mu.Unlock()
	if outdated {
		return
	}
	if len(job.files) > 0 {
		a.readFiles(job)
		return
	}
	found := a.look(job.tree, job.tree.Parts())
	if found == nil {
		return
	}
	jobs := a.below(found)
	a.mu.Lock()
	a.keepLocked(job.tree, found)
	a.mu.Unlock()
	a.push(jobs...)
}

// below returns the directories in what was found, to be listed in the order of
// the entries: those of nodes where there are nodes already.
func (a *ahead) below(s *answers) (jobs []aheadJob) {
	for i := len(s.entries) - 1; i >= 0; i-- {
		res := s.found[s.entries[i].Name]
		if res == nil || res.Kind != branches.Directory {
			continue
		}
		tree := res.Dir
		if n := a.fs.table.peek(a.fs.keyOf(res)); n != nil && n.isDir() {
			tree = n.dir.tree
		}
		jobs = append(jobs, aheadJob{tree: tree})
	}
	return jobs
}

// look lists the directory d, which has the given parts, and looks up what is in
// it; nil if that cannot be kept.
func (a *ahead) look(d *branches.Dir, parts []*branches.Part) *answers {
	if !onlyRead(parts) {
		return nil
	}
	entries, err := a.fs.stack.List(d)
	if err != nil || len(entries) > maxAhead/2 {
		return nil
	}
	out := &answers{parts: parts, entries: entries, found: make(map[string]*branches.Resolution, len(entries)), at: time.Now()}
	for i := range entries {
		res, err := a.fs.stack.Lookup(d, entries[i].Name)
		if err == nil && res.Kind != branches.NotFound {
			out.found[entries[i].Name] = &res
		}
	}
	return out
}
