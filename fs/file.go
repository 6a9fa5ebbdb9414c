package fs

import (
	"math"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

// backing is an open file in a branch. Every handle of a node uses the same
// one, so that all of them see a copy-up.
type backing struct {
	fd       int           // immutable
	writable bool          // immutable
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

// mayStayOpen reports whether another file may stay open while it has handles.
// If not it is opened for each request: slow, but it works.
func (f *FS) mayStayOpen() bool { return f.backings.Load() <= f.maxBackings }

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
		b.refs.Add(1)
		return b, nil
	}
	b, err := f.openBackingLocked(n, write)
	if err != nil {
		return nil, err
	}
	if n.opens > 0 && f.mayStayOpen() {
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
		if n.opens > 0 {
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
	} else if n.opens > 0 {
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

// Open implements fuse.RawFileSystem. Nothing is copied up before the first
// change, as in AUFS.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	if err := f.copyUpOnOpen(n); err != nil {
		return status(err)
	}
	writes := writesOf(in.Flags)
	n.mu.Lock()
	n.opens++
	n.writes += writes
	err := f.mayOpenLocked(n, in.Flags)
	var b *backing
	if err == nil {
		b, err = f.openFileLocked(n, false)
	}
	n.mu.Unlock()
	if err == nil {
		b.release()
	} else {
		f.closed(n, writes)
		return status(err)
	}
	f.counters.opens.Add(1)
	out.OpenFlags = f.openFlags(in.Flags)
	return fuse.OK
}

// mayOpenLocked refuses what the kernel cannot, because FUSE does not tell it
// which files are immutable or append-only (may_open). A lower file of that
// kind stays as it is. Preconditions: n.mu is held.
func (f *FS) mayOpenLocked(n *node, flags uint32) error {
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return nil
	}
	if f.readOnly() {
		return unix.EROFS
	}
	st, err := f.statLocked(n)
	if err != nil {
		return err
	}
	if st.Immutable() || st.AppendOnly() && (n.home == nil || flags&unix.O_APPEND == 0) {
		return unix.EPERM
	}
	return nil
}

// openFlags says what the kernel may do with a file's pages.
func (f *FS) openFlags(flags uint32) uint32 {
	var out uint32
	if f.opts.Timeout > 0 && !f.opts.StrictAtime {
		out |= fuse.FOPEN_KEEP_CACHE
	}
	return out | fuse.FOPEN_NOFLUSH
}

// writesOf is 1 for flags that open a file for writing, else 0.
func writesOf(flags uint32) int {
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return 0
	}
	return 1
}

// closed ends one handle of n; writes says that it was one for writing.
func (f *FS) closed(n *node, writes int) {
	n.mu.Lock()
	n.opens--
	n.writes -= writes
	var b *backing
	if n.opens == 0 && len(n.names) > 0 {
		b, n.back = n.back, nil // without a name it stays for those who have it by O_PATH
	}
	n.mu.Unlock()
	if b != nil {
		b.release()
	}
}

// Release implements fuse.RawFileSystem.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if n := f.table.get(in.NodeId); n != nil {
		f.closed(n, writesOf(in.Flags))
	}
}

// readResult reads straight into the reply.
type readResult struct {
	back *backing
	off  int64
	size int
}

func (r *readResult) Size() int { return r.size }
func (r *readResult) Done()     { r.back.release() }

// Bytes implements fuse.ReadResult.
func (r *readResult) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, err := sys.PRead(r.back.fd, buf[:min(r.size, len(buf))], r.off)
	return buf[:n], status(err)
}

// Readv is what go-fuse's protocol server prefers to Bytes.
func (r *readResult) Readv(dst [][]byte) (int, fuse.Status) {
	n, err := sys.PReadV(r.back.fd, dst, r.off)
	return n, status(err)
}

// Read implements fuse.RawFileSystem.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return nil, code
	}
	b, err := f.openFile(n, false)
	if err != nil {
		return nil, status(err)
	}
	if f.opts.StrictAtime && n.changeable() != nil {
		// The branch is mounted with relatime, more often than not.
		if err := sys.UtimesAt(b.fd, "", unix.Timespec{Nsec: sys.Now}, unix.Timespec{Nsec: sys.Omit}); err == nil {
			f.inval(n, -1)
		}
	}
	return &readResult{b, int64(in.Offset), len(buf)}, fuse.OK
}

// writable copies n up and returns its open file; call wrote after.
func (f *FS) writable(id uint64) (*node, *backing, fuse.Status) {
	n, code := f.node(id)
	if !code.Ok() {
		return nil, nil, code
	}
	if err := f.copyUp(n); err != nil {
		return nil, nil, status(err)
	}
	b, err := f.openToWrite(n)
	return n, b, status(err)
}

// openToWrite opens n, which is in a writable branch, and keeps it there until wrote.
func (f *FS) openToWrite(n *node) (*backing, error) {
	if f.stack.Several() {
		n.copyMu.RLock()
	}
	b, err := f.openFile(n, true)
	if err != nil && f.stack.Several() {
		n.copyMu.RUnlock()
	}
	return b, err
}

// wrote ends what openToWrite has begun.
func (f *FS) wrote(n *node, b *backing) {
	b.release()
	if f.stack.Several() {
		n.copyMu.RUnlock()
	}
}

// Write implements fuse.RawFileSystem.
func (f *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, b, code := f.writable(in.NodeId)
	if !code.Ok() {
		return 0, code
	}
	defer f.wrote(n, b)
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := f.killSuid(n, b, in.Owner); err != nil {
			return 0, status(err)
		}
	}
	done := 0
	for done < len(data) {
		w, err := sys.PWrite(b.fd, data[done:], int64(in.Offset)+int64(done))
		if err != nil {
			if done > 0 {
				break // a short write; the caller sees the error when it goes on
			}
			return 0, status(err)
		}
		done += w
	}
	return uint32(done), fuse.OK
}

// killSuid clears set-user-id and set-group-id as FUSE_HANDLE_KILLPRIV_V2 asks
// of us when somebody changes the data of a file; file capabilities go with the
// write itself.
func (f *FS) killSuid(n *node, b *backing, who fuse.Owner) error {
	st, err := sys.FStat(b.fd)
	if err != nil {
		return err
	}
	home := n.changeable()
	f.applyOverride(home, b.fd, "", &st)
	kill := f.killable(&st, who)
	if kill == 0 {
		return nil
	}
	if err := f.chmod(home, location{b.fd, "", noRelease}, st.Mode&07777&^kill); err != nil {
		return err
	}
	f.inval(n, -1) // the kernel would go by the old mode until the next stat
	return nil
}

// changeData makes a change of n's data for a request that does not say whether
// the caller may leave set-user-id (CAP_FSETID): root may, so that it is left to
// the change itself. That of a daemon in a user namespace clears the bits, and
// the kernel must hear of it.
func (f *FS) changeData(n *node, b *backing, caller *fuse.Caller, change func() error) error {
	if caller.Uid != 0 {
		if err := f.killSuid(n, b, caller.Owner); err != nil {
			return err
		}
		return change()
	}
	st, err := sys.FStat(b.fd)
	if err != nil {
		return err
	}
	err = change()
	if st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		f.inval(n, -1)
	}
	return err
}

// killable returns the bits that go when who changes the data of a file
// (setattr_should_drop_suidgid). Other groups of his are not known here:
// set-group-id that does not mean execution goes for all but root, which may
// be that of a user namespace, and the group itself.
func (f *FS) killable(st *sys.Stat, who fuse.Owner) uint32 {
	if st.Mode&unix.S_IXGRP != 0 || who.Uid != 0 && who.Gid != f.shownGID(st.GID) {
		return st.Mode & (unix.S_ISUID | unix.S_ISGID)
	}
	return st.Mode & unix.S_ISUID
}

// truncate sets the length of n.
func (f *FS) truncate(n *node, c *cut) error {
	if done, err := f.copyUpWith(n, copyOptions{cut: c}); done || err != nil {
		return err
	}
	b, err := f.openToWrite(n)
	if err != nil {
		return err
	}
	defer f.wrote(n, b)
	if c.kill {
		if err := f.killSuid(n, b, c.who); err != nil {
			return err
		}
	}
	return sys.Ftruncate(b.fd, c.size)
}

// Flush implements fuse.RawFileSystem: writes have gone to the branch, there
// is nothing left to report, and the kernel need not ask again.
func (f *FS) Flush(_ <-chan struct{}, _ *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Fsync implements fuse.RawFileSystem.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	if f.opts.Sync == SyncVolatile || n.changeable() == nil {
		return fuse.OK
	}
	b, err := f.openFile(n, false)
	if err != nil {
		return status(err)
	}
	defer b.release()
	const dataOnly = 1 // FUSE_FSYNC_FDATASYNC
	if in.FsyncFlags&dataOnly != 0 {
		return status(sys.Fdatasync(b.fd))
	}
	return status(sys.Fsync(b.fd))
}

// Fallocate implements fuse.RawFileSystem.
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	n, b, code := f.writable(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.wrote(n, b)
	return status(f.changeData(n, b, &in.Caller, func() error {
		return sys.Fallocate(b.fd, in.Mode, int64(in.Offset), int64(in.Length))
	}))
}

// Lseek implements fuse.RawFileSystem: SEEK_DATA and SEEK_HOLE.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	b, err := f.openFile(n, false)
	if err != nil {
		return status(err)
	}
	defer b.release()
	off, err := sys.Seek(b.fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return status(err)
}

// CopyFileRange implements fuse.RawFileSystem. The kernel has written back
// both files before, and drops the pages of the target after.
func (f *FS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	src, code := f.node(in.NodeId)
	if !code.Ok() {
		return 0, code
	}
	out, dst, code := f.writable(in.NodeIdOut)
	if !code.Ok() {
		return 0, code
	}
	defer f.wrote(out, dst)
	from, err := f.openFile(src, false)
	if err != nil {
		return 0, status(err)
	}
	defer from.release()
	n := 0
	err = f.changeData(out, dst, &in.Caller, func() (err error) {
		n, err = sys.CopyFileRange(from.fd, int64(in.OffIn), dst.fd, int64(in.OffOut), int(min(in.Len, 1<<30)))
		return err
	})
	return uint32(n), status(err)
}
