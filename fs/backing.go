package fs

import (
	"math"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

// backing is an open file in a branch. Every handle of a node uses the same
// one, so that all of them see a copy-up.
type backing struct {
	fd       int           // immutable
	writable bool          // immutable
	appends  bool          // the file is append-only, and open accordingly. Immutable.
	stub     *stubFile     // of a file that was copied up by blocks, else nil. Immutable once others see it.
	count    *atomic.Int64 // FS.backings. Immutable.
	refs     atomic.Int32
}

func (f *FS) newBacking(fd int, writable bool) *backing {
	b := &backing{fd: fd, writable: writable, count: &f.backings}
	b.refs.Store(1)
	f.backings.Add(1)
	return b
}

func (b *backing) release() {
	if b.refs.Add(-1) == 0 {
		if b.stub != nil {
			b.stub.letGo(b.fd)
		}
		sys.Close(b.fd)
		b.count.Add(-1)
	}
}

// reservedFds is how many descriptors are kept back from the files that callers
// have open: for cached directories, and for what is done at the moment.
const reservedFds = branches.MaxCachedDirs + 64

// reservedPins is how many of those files without a name may take.
const reservedPins = 32

// maxBackings is how many files may stay open in branches.
func maxBackings() int64 {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil || l.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return max(int64(l.Cur)-reservedFds, int64(l.Cur)/2)
}

// staysOpenLocked reports whether the open file of n may be kept for the next
// request: while it has handles or, when the kernel does not tell of them, for a
// moment. If not it is opened for each request: slow, but it works.
// Preconditions: n.mu is held.
func (f *FS) staysOpenLocked(n *node) bool {
	if f.backings.Load() > f.maxBackings {
		return false
	}
	if f.opts.Opens {
		return n.opens > 0
	}
	return f.recents.add(n)
}

// mayBeOpenLocked reports whether a process may have n open. Preconditions: n.mu is held.
func (f *FS) mayBeOpenLocked(n *node) bool {
	return n.opens > 0 || !f.opts.Opens && n.typ == unix.S_IFREG
}

// openFile returns the open file of n for one operation; release it after.
// write asks for one in the upper: the caller has copied n up before.
func (f *FS) openFile(n *node, write bool) (*backing, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return f.openFileLocked(n, write)
}

// Preconditions: n.mu is held.
func (f *FS) openFileLocked(n *node, write bool) (*backing, error) {
	if b := n.back; b != nil && (b.writable || !write) {
		n.used = true
		b.refs.Add(1)
		return b, nil
	}
	b, err := f.openBackingLocked(n, write)
	if err != nil {
		return nil, err
	}
	if f.staysOpenLocked(n) {
		b.refs.Add(1)
		if n.back != nil {
			n.back.release()
		}
		n.back = b
	}
	return b, nil
}

// openBackingLocked opens n's file anew. Preconditions: n.mu is held.
func (f *FS) openBackingLocked(n *node, write bool) (*backing, error) {
	b, err := f.openDiskLocked(n, write)
	if err != nil {
		return nil, err
	}
	return f.withStub(n, f.branchOfLocked(n), b)
}

// openDiskLocked opens what is on disk, be it a stub. Preconditions: n.mu is held.
func (f *FS) openDiskLocked(n *node, write bool) (*backing, error) {
	at, err := f.locateLocked(n)
	if err != nil {
		return nil, err
	}
	defer at.release()
	name := at.name
	if name == "" {
		// A file that has no name but is open already: only to be read.
		fd, err := sys.Dup(at.fd)
		return f.opened(fd, false, err)
	}
	if n.home == nil {
		fd, err := sys.OpenUntouched(at.fd, name, 0)
		if err == unix.EXDEV { // something is mounted on the file: it shows as an empty one
			fd, err = unix.MemfdCreate("layerfs", unix.MFD_CLOEXEC)
		}
		return f.opened(fd, false, err)
	}
	const how = unix.O_RDWR | unix.O_NONBLOCK
	fd, err := -1, error(unix.EPERM)
	if f.opts.NoAtime { // refused for files that are not ours
		fd, err = sys.OpenIn(at.fd, name, how|unix.O_NOATIME, 0)
	}
	if err == unix.EPERM {
		fd, err = sys.OpenIn(at.fd, name, how, 0)
	}
	if err == unix.EPERM { // maybe append-only; on any other file O_APPEND would be wrong
		if st, serr := sys.StatAt(at.fd, name, 0); serr == nil && st.AppendOnly() {
			fd, err = sys.OpenIn(at.fd, name, how|unix.O_APPEND, 0)
			b, err := f.opened(fd, true, err)
			if err == nil {
				b.appends = true
			}
			return b, err
		}
	}
	if err == unix.EACCES || err == unix.EPERM || err == unix.EROFS {
		// The daemon's user may not write this file of his. The kernel lets no
		// one write it either, except those who had it open.
		if !write {
			fd, err = sys.OpenIn(at.fd, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != unix.EACCES {
				return f.opened(fd, false, err)
			}
		}
		fd, err = f.openForced(at)
	}
	return f.opened(fd, true, err)
}

// opened makes a backing of what an open call returned.
func (f *FS) opened(fd int, writable bool, err error) (*backing, error) {
	if err != nil {
		return nil, err
	}
	return f.newBacking(fd, writable), nil
}

// openForced opens a file whose owner has left himself no permission to do so,
// which the daemon owns. Somebody has had it open since before.
func (f *FS) openForced(at location) (int, error) {
	st, err := sys.StatAt(at.fd, at.name, 0)
	if err != nil {
		return -1, err
	}
	if st.UID != f.euid {
		return -1, unix.EACCES
	}
	if err := sys.ChmodAt(at.fd, at.name, st.Mode&07777|0600); err != nil {
		return -1, err
	}
	fd, err := sys.OpenIn(at.fd, at.name, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if cerr := sys.ChmodAt(at.fd, at.name, st.Mode&07777); err == nil && cerr != nil {
		sys.Close(fd)
		return -1, cerr
	}
	return fd, err
}

// pinLocked opens n's file, until the last close or until the kernel forgets
// it, because its last name is about to go: a path walk that has looked the
// name up may still ask what a symbolic link says, or be about to open a file.
// Failing to is an error when somebody has it open, else only those who come
// too late find nothing. Preconditions: n.mu is held.
func (f *FS) pinLocked(n *node) error {
	if n.back != nil || n.isDir() {
		return nil
	}
	if f.backings.Load() > f.maxBackings+reservedPins {
		if f.mayBeOpenLocked(n) {
			return unix.EMFILE
		}
		return nil
	}
	pin := f.openPathLocked
	if n.typ == unix.S_IFREG {
		pin = func(n *node) (*backing, error) { return f.openBackingLocked(n, false) }
	}
	b, err := pin(n)
	if err == nil {
		n.back = b
		return nil
	}
	if n.opens == 0 && (err == unix.EACCES || err == unix.EPERM) {
		return nil // nobody can have opened it through us
	}
	if f.mayBeOpenLocked(n) {
		return err
	}
	return nil
}

// openPathLocked opens a link or special file for *at calls only.
// Preconditions: n.mu is held.
func (f *FS) openPathLocked(n *node) (*backing, error) {
	at, err := f.locateLocked(n)
	if err != nil {
		return nil, err
	}
	defer at.release()
	fd, err := sys.OpenIn(at.fd, at.name, unix.O_PATH, 0)
	return f.opened(fd, false, err)
}
