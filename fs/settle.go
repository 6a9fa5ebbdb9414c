package fs

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
)

// A stub becomes a plain file in its own inode, so that its names, handles and
// attributes stay: while the attribute that makes it a stub is there, what the
// inode has as content does not count. The content is copied behind the text for
// people, then over it, and then the attribute is removed: that is the one step
// in which it stops being a stub. A crash before leaves a stub, whose
// text and times the next mount puts right (mendStub): they are in the
// attribute stub.TimesAttr. Writing goes on meanwhile, to the device; what was
// written is copied again in the end, with nobody writing.

// SettleStatus says how far a settle has come.
type SettleStatus struct {
	Running bool     `json:"running"`
	Files   int      `json:"files"`   // that were stubs when it began
	Bytes   int64    `json:"bytes"`   // of them
	Done    int      `json:"done"`    // files
	Settled int      `json:"settled"` // of them
	Copied  int64    `json:"copied"`  // bytes
	Path    string   `json:"path"`    // of the file at hand
	Failed  []string `json:"failed"`  // what stays as it is, and why
	Error   string   `json:"error,omitempty"`
	// Directories are those that were redirected and are plain now, Redirects
	// those that are still.
	Directories int `json:"directories"`
	Redirects   int `json:"redirects"`
}

// settler is the settle of a mount, of which there is one at a time.
type settler struct {
	running sync.Mutex                 // held by who settles
	stopped atomic.Bool                // the mount ends
	whole   map[*branches.Branch]int64 // branches without a stub left, and how many copy-ups by blocks there had been
	upTo    atomic.Int64               // how many copy-ups by blocks there were when the last settle in idle time began; -1 before

	mu     sync.Mutex
	status SettleStatus // protected by mu
}

func (s *settler) update(change func(*SettleStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// SettleStatus returns how far the last settle has come.
func (f *FS) SettleStatus() SettleStatus {
	f.settler.mu.Lock()
	defer f.settler.mu.Unlock()
	return f.settler.status
}

// StartSettle has Settle run beside the requests, unless it does so already.
func (f *FS) StartSettle() {
	if !f.settler.running.TryLock() {
		return
	}
	f.settler.update(func(s *SettleStatus) { *s = SettleStatus{Running: true, Failed: []string{}} })
	go func() {
		defer f.settler.running.Unlock()
		f.settleAll(true, f.settler.stopped.Load)
	}()
}

// Settle makes every stub of the writable branches a plain file, and, if dirs
// is set, every redirected directory a plain one. It returns what became of it.
func (f *FS) Settle(dirs bool) SettleStatus {
	f.settler.running.Lock()
	defer f.settler.running.Unlock()
	f.settler.update(func(s *SettleStatus) { *s = SettleStatus{Running: true, Failed: []string{}} })
	f.settleAll(dirs, func() bool { return false })
	return f.SettleStatus()
}

func (f *FS) settleAll(dirs bool, stopped func() bool) {
	var err error
	if dirs { // first: what they show may be copied up by blocks
		err = f.settleDirs(stopped)
	}
	if err == nil {
		err = f.settleBranches(stopped)
	}
	left := f.Redirects()
	f.settler.update(func(s *SettleStatus) {
		s.Running, s.Path, s.Redirects = false, "", left
		if err != nil {
			s.Error = err.Error()
		}
	})
}

var errStopped = errors.New("stopped")

func (f *FS) settleBranches(stopped func() bool) error {
	if f.readOnly() {
		return unix.EROFS
	}
	for _, b := range f.writableBranches() {
		if !b.Stubs.Load() {
			continue
		}
		before := f.counters.blockCopyUps.Load()
		list, err := f.stubsIn(b)
		if err != nil {
			return fmt.Errorf("looking for stubs in %s: %w", b.Path, err)
		}
		failed := 0
		for _, p := range list {
			if stopped() {
				return errStopped
			}
			f.settler.update(func(s *SettleStatus) { s.Path = p })
			err := f.settlePath(b, p)
			f.settler.update(func(s *SettleStatus) {
				if s.Done++; err != nil {
					s.Failed = append(s.Failed, fmt.Sprintf("%s: %v", p, err))
				} else {
					s.Settled++
				}
			})
			if err != nil {
				failed++
			}
		}
		if failed == 0 {
			f.settler.mu.Lock()
			if f.settler.whole == nil {
				f.settler.whole = map[*branches.Branch]int64{}
			}
			f.settler.whole[b] = before
			f.settler.mu.Unlock()
		}
	}
	return nil
}

// wholeBranches lists the upper branches in which no stub is left, nor anything
// in their private pools. The requests have ended.
func (f *FS) wholeBranches() (list []*branches.Branch) {
	f.settler.mu.Lock()
	defer f.settler.mu.Unlock()
	for b, copyUps := range f.settler.whole {
		if copyUps == f.counters.blockCopyUps.Load() && b.Writable() && f.files.pools.empty(b) {
			list = append(list, b)
		}
	}
	return list
}

func (f *FS) writableBranches() []*branches.Branch {
	f.gate.Enter()
	defer f.gate.Leave()
	return f.stack.Writable()
}

// settlePath settles the stub at p in the branch b.
func (f *FS) settlePath(b *branches.Branch, p string) error {
	f.gate.Enter()
	defer f.gate.Leave()
	n, err := f.nodeAt(p)
	if err == unix.ENOENT {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	defer f.table.forget(n.id, 1)
	if n.changeable() != b {
		return fmt.Errorf("another branch hides it: %w", unix.EBUSY)
	}
	return f.settleNode(n)
}

// nodeAt returns the node at a path of the mount, counted as looked up.
func (f *FS) nodeAt(p string) (*node, error) {
	n := f.table.get(rootID)
	f.table.count1(n)
	for _, name := range strings.Split(path.Clean("/" + p)[1:], "/") {
		if name == "" {
			break
		}
		if !n.isDir() {
			f.table.forget(n.id, 1)
			return nil, unix.ENOTDIR
		}
		n.dir.mu.RLock()
		next, _, err := f.lookup(n, name)
		n.dir.mu.RUnlock()
		f.table.forget(n.id, 1)
		if err != nil {
			return nil, err
		}
		n = next
	}
	return n, nil
}

// settleRounds is how often what was written meanwhile is copied again before
// writers have to wait.
const settleRounds = 4

// settleNode makes n, if it is a stub, a plain file.
func (f *FS) settleNode(n *node) error {
	back, err := f.openFile(n, true)
	if err != nil {
		return err
	}
	defer back.release()
	if back.stub == nil || !back.stub.write {
		return nil
	}
	d, err := back.data()
	if err != nil {
		return err
	}
	d.watch.start()
	defer d.watch.stop()
	s := &settling{f: f, n: n, back: back, d: d, ns: string(back.stub.branch.Format.NS), buf: make([]byte, copyChunk)}
	if err := s.begin(); err != nil {
		return err
	}
	err = s.copy()
	if err == nil {
		err = s.finish()
	}
	if err != nil {
		s.undo()
	}
	return err
}

// settling is one file that is being settled.
type settling struct {
	f    *FS
	n    *node
	back *backing
	d    *blockFile
	ns   string
	buf  []byte
}

// begin keeps the times that the file shows, since its inode gets others.
func (s *settling) begin() error {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	st, err := sys.FStat(s.back.fd)
	if err != nil {
		return err
	}
	s.back.markUnfinished()
	t := &times{sys.Timespec(st.Atime), sys.Timespec(st.Mtime)}
	if err := sys.SetXattr(s.back.fd, "", s.ns+stub.TimesAttr, []byte(t.String()), 0); err != nil {
		return err
	}
	s.d.times.Store(t)
	return sys.Fsync(s.back.fd)
}

// copy copies everything behind the text while others may write.
func (s *settling) copy() error {
	if err := s.whole(); err != nil {
		return err
	}
	for range settleRounds {
		again, every := s.d.watch.take()
		if !every && len(again) == 0 {
			return nil
		}
		if err := s.again(again, every); err != nil {
			return err
		}
	}
	return nil
}

func (s *settling) whole() error {
	fd := s.back.fd
	if err := sys.Ftruncate(fd, stub.Size); err != nil {
		return err
	}
	for off := int64(stub.Size); ; {
		start, err := s.d.seek(off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := s.d.seek(start, unix.SEEK_HOLE)
		if err == unix.ENXIO { // it has become shorter, which is noted
			return nil
		}
		if err != nil {
			return err
		}
		for ; start < end; start += copyChunk {
			n := min(copyChunk, end-start)
			if err := copyPart(fd, s.back, s.buf, start, start+n); err != nil {
				return err
			}
			s.f.settler.update(func(st *SettleStatus) { st.Copied += n })
		}
		off = end
	}
}

// again copies what was written meanwhile.
func (s *settling) again(chunks []int64, every bool) error {
	if every {
		return s.whole()
	}
	size := s.d.blocks.Size()
	for _, c := range chunks {
		if err := copyPart(s.back.fd, s.back, s.buf, max(c*watchChunk, stub.Size), min((c+1)*watchChunk, size)); err != nil {
			return err
		}
	}
	return nil
}

// finish keeps writers out, copies the rest and makes the stub a plain file.
func (s *settling) finish() error {
	s.n.copyMu.Lock()
	defer s.n.copyMu.Unlock()
	if err := s.again(s.d.watch.take()); err != nil {
		return err
	}
	fd, size := s.back.fd, s.d.blocks.Size()
	if err := sys.Ftruncate(fd, max(size, stub.Size)); err != nil {
		return err
	}
	if err := copyPart(fd, s.back, s.buf, 0, min(size, stub.Size)); err != nil {
		return err
	}
	if err := sys.Ftruncate(fd, size); err != nil {
		return err
	}
	if err := sys.Fsync(fd); err != nil {
		return err
	}
	plain, err := sys.Dup(fd)
	if err != nil {
		return err
	}
	s.n.mu.Lock()
	t := s.d.times.Load()
	err = sys.UtimesAt(fd, "", t.atime, t.mtime)
	if err == nil {
		err = sys.RemoveXattr(fd, "", s.ns+stub.Attr)
	}
	if err != nil {
		s.n.mu.Unlock()
		sys.Close(plain)
		return err
	}
	_ = sys.RemoveXattr(fd, "", s.ns+stub.TimesAttr)
	s.d.times.Store(nil)
	s.f.swapBackLocked(s.n, s.f.newBacking(plain, true))
	s.n.mu.Unlock()
	s.f.inval(s.n, -1) // its blocks are counted otherwise
	_ = sys.Fsync(fd)
	key := s.d.key
	s.f.files.later(func() error { return s.f.files.remove(key) })
	return nil
}

// undo makes the stub again what it was.
func (s *settling) undo() {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	t := s.d.times.Swap(nil)
	if err := mendStub(s.back.fd, s.ns, t); err != nil {
		s.f.trouble("stub %s: its text and times could not be restored: %v", s.back.stub.path, err)
	}
	s.f.inPlace(s.back)
}

// times are the two times of a file that can be set.
type times struct{ atime, mtime unix.Timespec }

func (t *times) String() string {
	return fmt.Sprintf("%d.%09d %d.%09d", t.atime.Sec, t.atime.Nsec, t.mtime.Sec, t.mtime.Nsec)
}

func parseTimes(text string) (t times, ok bool) {
	_, err := fmt.Sscanf(text, "%d.%d %d.%d", &t.atime.Sec, &t.atime.Nsec, &t.mtime.Sec, &t.mtime.Nsec)
	return t, err == nil
}

// mendStub gives the stub fd its text again, and the times t.
func mendStub(fd int, ns string, t *times) error {
	err := sys.Ftruncate(fd, stub.Size)
	if err == nil {
		err = sys.PWriteAll(fd, stub.Text(), 0)
	}
	if err == nil && t != nil {
		err = sys.UtimesAt(fd, "", t.atime, t.mtime)
	}
	if err == nil {
		err = sys.RemoveXattr(fd, "", ns+stub.TimesAttr)
	}
	return err
}

// idleBefore is how long nobody must have used the mount before a settle in the
// background begins.
const idleBefore = 10 * time.Second

// SettleWhenIdle settles whenever nobody has used the mount for a while, until
// the mount ends.
func (f *FS) SettleWhenIdle() {
	last, since := int64(-1), time.Now()
	for !f.settler.stopped.Load() {
		time.Sleep(time.Second)
		now := f.gate.entered.Load()
		if now != last {
			last, since = now, time.Now()
			continue
		}
		if time.Since(since) >= idleBefore && f.counters.blockCopyUps.Load() != f.settler.upTo.Load() {
			f.settler.upTo.Store(f.counters.blockCopyUps.Load())
			f.StartSettle()
		}
	}
}

// unstub makes n plain, if it is a stub, because its owner may lose the permission
// to read it: an ordinary user's daemon could not read the stub's attribute then.
func (f *FS) unstub(n *node) error {
	if f.euid == 0 || n.typ != unix.S_IFREG {
		return nil
	}
	return f.settleNode(n)
}
