package fs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// Open implements fuse.RawFileSystem. ENOSYS has the kernel open files without
// asking from now on. Nothing is copied up before the first change, as in AUFS.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !f.opts.Opens {
		return fuse.ENOSYS
	}
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
	if err == nil {
		out.OpenFlags = f.openFlags(in.Flags)
		f.passLocked(n, b, out)
	}
	n.mu.Unlock()
	if err == nil {
		if b.stub != nil {
			_, err = b.data() // whoever opens it hears of it when the content is gone
		}
		b.release()
	}
	if err != nil {
		f.closed(n, writes)
		return status(err)
	}
	f.counters.opens.Add(1)
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
	if n.opens == 0 {
		f.unpassLocked(n)
	}
	if n.opens == 0 && len(n.names) > 0 {
		b, n.back = n.back, nil // without a name it stays for those who have it by O_PATH
	}
	n.mu.Unlock()
	if b != nil {
		b.release()
	}
}

// Release implements fuse.RawFileSystem. Once the kernel opens files by itself it
// does not tell of the end of those that it has had created either.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if !f.opts.Opens {
		return
	}
	if n := f.table.get(in.NodeId); n != nil {
		f.closed(n, writesOf(in.Flags))
	}
}

// readResult reads straight into the reply.
type readResult struct {
	back  *backing
	off   int64
	size  int
	ahead *ahead
}

func (r *readResult) Size() int { return r.size }
func (r *readResult) Done()     { r.back.release() }

// Bytes implements fuse.ReadResult.
func (r *readResult) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, err := r.back.read(buf[:min(r.size, len(buf))], r.off)
	return buf[:n], status(err)
}

// Readv is what go-fuse's protocol server prefers to Bytes.
func (r *readResult) Readv(dst [][]byte) (int, fuse.Status) {
	if r.back.stub != nil {
		n, err := r.back.readv(dst, r.off)
		return n, status(err)
	}
	start := time.Now()
	n, err := sys.PReadV(r.back.fd, dst, r.off)
	r.ahead.hasRead(time.Since(start))
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
	if in.Offset == 0 {
		f.ahead.reads(n)
	}
	return &readResult{b, int64(in.Offset), len(buf), &f.ahead}, fuse.OK
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
	n.copyMu.RLock()
	b, err := f.openFile(n, true)
	if err != nil {
		n.copyMu.RUnlock()
	}
	return b, err
}

// wrote ends what openToWrite has begun.
func (f *FS) wrote(n *node, b *backing) {
	b.release()
	n.copyMu.RUnlock()
}

// Write implements fuse.RawFileSystem.
func (f *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, b, code := f.writable(in.NodeId)
	if !code.Ok() {
		return 0, code
	}
	defer f.wrote(n, b)
	if b.appends && in.Flags&unix.O_APPEND == 0 {
		return 0, fuse.EPERM // may_open, of which Open has not been told
	}
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := f.killSuid(n, b, in.Owner); err != nil {
			return 0, status(err)
		}
	}
	done := 0
	for done < len(data) {
		w, err := b.write(data[done:], int64(in.Offset)+int64(done))
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
	return b.truncate(c.size)
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
	return status(b.sync(in.FsyncFlags&dataOnly != 0))
}

// Fallocate implements fuse.RawFileSystem.
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	n, b, code := f.writable(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.wrote(n, b)
	return status(f.changeData(n, b, &in.Caller, func() error {
		return b.fallocate(in.Mode, int64(in.Offset), int64(in.Length))
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
	off, err := b.seek(int64(in.Offset), int(in.Whence))
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
		n, err = from.copyTo(int64(in.OffIn), dst, int64(in.OffOut), int64(min(in.Len, 1<<30)))
		return err
	})
	return uint32(n), status(err)
}
