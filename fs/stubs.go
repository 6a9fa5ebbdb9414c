package fs

import (
	"fmt"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
)

// stubFile is what a backing has besides its descriptor when that is of a stub.
type stubFile struct {
	fs     *FS
	branch *branches.Branch // immutable
	write  bool             // in a writable branch. Immutable.
	path   string           // in the mount, for messages. Immutable.

	mu   sync.Mutex
	rec  stub.Record // changes when the stub turns out to be a copy. Protected by mu.
	file *blockFile  // nil until it is first needed. Protected by mu.

	touched atomic.Int64 // when the modification time was set last, in touchGrain
	capless atomic.Bool  // it has no file capability that a change would have to remove
}

// touchGrain is how exact modification times are, as in a kernel that ticks 250
// times a second.
const touchGrain = 4 * time.Millisecond

// withStub completes a backing of n's file, which lies in b, if that is a stub.
// Preconditions: n.mu is held.
func (f *FS) withStub(n *node, b *branches.Branch, back *backing) (*backing, error) {
	if n.typ != unix.S_IFREG || b == nil {
		return back, nil
	}
	st, err := sys.FStat(back.fd)
	if err != nil {
		back.release()
		return nil, err
	}
	rec, ok, err := b.StubAt(back.fd, "", &st)
	if err != nil {
		f.trouble("stub %s: %v", pathLocked(n), err)
		back.release()
		return nil, unix.EIO
	}
	if ok {
		back.stub = &stubFile{fs: f, branch: b, write: b.Writable() && !f.opts.ReadOnly, path: pathLocked(n), rec: rec}
	}
	return back, nil
}

// data returns the open device of a stub.
func (b *backing) data() (*blockFile, error) {
	s := b.stub
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != nil {
		return s.file, nil
	}
	d, err := s.fs.openStub(s, b.fd)
	if err != nil {
		s.fs.trouble("stub %s: device %s: %v", s.path, s.rec.Device, err)
		return nil, unix.EIO
	}
	s.file = d
	return d, nil
}

// opened returns the device if it is open, else nil.
func (s *stubFile) opened() *blockFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file
}

// letGo ends the use of a stub whose descriptor fd is about to be closed. The
// device of one that has no name any more goes.
func (s *stubFile) letGo(fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	bf := &s.fs.files
	if s.file != nil {
		bf.release(s.file)
	}
	st, err := sys.FStat(fd)
	if err != nil || st.Nlink > 0 || !s.write {
		return
	}
	p, err := bf.pools.of(s.branch, s.rec)
	if err != nil {
		return
	}
	inode, err := stub.Inode(fd, "")
	if err != nil {
		return
	}
	rec := s.rec
	bf.later(func() error {
		if own, err := s.fs.owns(s.branch, p, rec, inode); err != nil || !own {
			return err
		}
		return bf.remove(fileKey{p, rec.Device})
	})
}

// owns reports whether the device that rec names is that of the inode in the
// upper b, and not of a file that the stub is a copy of.
func (f *FS) owns(b *branches.Branch, p *pool, rec stub.Record, inode string) (own bool, err error) {
	id, err := f.files.pools.upper(b)
	if err != nil {
		return false, err
	}
	err = p.with(func(s stub.Store) error {
		dev, err := deviceOf(s, rec)
		own = err == nil && dev.Upper == id && dev.Stub == inode
		return err
	})
	return own, err
}

// markUnlinking notes that the last name of a stub is about to go. If that
// cannot be noted, a crash in between leaves a device that nothing names.
func (b *backing) markUnlinking() {
	st, err := sys.FStat(b.fd)
	if err == nil && st.Nlink <= 1 {
		b.markUnfinished()
	}
}

// markUnfinished has the next mount look whether the stub is still there, if
// this one comes to no good end.
func (b *backing) markUnfinished() {
	s := b.stub
	if !s.write {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.fs.files.pools.of(s.branch, s.rec)
	if err != nil {
		return
	}
	inode, err := stub.Inode(b.fd, "")
	if err != nil {
		return
	}
	if own, err := s.fs.owns(s.branch, p, s.rec, inode); err == nil && own {
		_ = p.with(func(store stub.Store) error { return store.SetState(s.rec.Device, s.rec.Key, stub.Unlinking) })
	}
}

// touch makes a change of the content show in the attributes, as that of any
// other file does.
func (s *stubFile) touch(fd int, d *blockFile) error {
	if !s.capless.Swap(true) {
		if err := sys.RemoveXattr(fd, "", capability); err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP && err != unix.EPERM {
			s.capless.Store(false)
			return err
		}
	}
	now := time.Now().UnixNano() / int64(touchGrain)
	if s.touched.Swap(now) == now {
		return nil
	}
	if t := d.times.Load(); t != nil {
		at := time.Now()
		d.times.CompareAndSwap(t, &times{t.atime, unix.NsecToTimespec(at.UnixNano())})
		return nil
	}
	return sys.UtimesAt(fd, "", unix.Timespec{Nsec: sys.Omit}, unix.Timespec{Nsec: sys.Now})
}

// forgetTouch has the next change set the modification time, and look for a
// capability, whenever that is. Preconditions: n.mu is held.
func (n *node) forgetTouchLocked() {
	if n.back != nil && n.back.stub != nil {
		n.back.stub.touched.Store(0)
		n.back.stub.capless.Store(false)
	}
}

// complete makes st, the attributes of the file name in fd of the branch b, say
// what the mount shows: overrides applied and, of a stub, the size of the file.
func (f *FS) complete(b *branches.Branch, fd int, name string, st *sys.Stat) error {
	isFile := st.IsRegular()
	f.applyOverride(b, fd, name, st)
	if b == nil || !isFile || !st.IsRegular() {
		return nil
	}
	rec, ok, err := b.StubAt(fd, name, st)
	if !ok && err == nil {
		return nil
	}
	if err == nil {
		err = f.stubStat(b, rec, st)
	}
	if err != nil {
		f.trouble("stub %s in %s: device %s: %v", nameOr(name), b.Path, rec.Device, err)
		return errBroken
	}
	return nil
}

// stubStat makes st say of the stub with that record what the file is.
func (f *FS) stubStat(b *branches.Branch, rec stub.Record, st *sys.Stat) (err error) {
	if st.Size, err = f.stubSize(b, rec); err != nil {
		return err
	}
	st.Blocks = (st.Size + 511) / 512 // nobody takes it for a file of holes
	if p, err := f.files.pools.of(b, rec); err == nil {
		if t := f.files.timesOf(fileKey{p, rec.Device}); t != nil {
			st.Atime, st.Mtime = stampOf(t.atime), stampOf(t.mtime)
		}
	}
	return nil
}

func stampOf(t unix.Timespec) unix.StatxTimestamp {
	return unix.StatxTimestamp{Sec: t.Sec, Nsec: uint32(t.Nsec)}
}

// errBroken is a stub whose content cannot be found.
var errBroken = fmt.Errorf("a stub without its content: %w", unix.EIO)

func nameOr(name string) string {
	if name == "" {
		return "(open file)"
	}
	return name
}

func (f *FS) stubSize(b *branches.Branch, rec stub.Record) (uint64, error) {
	p, err := f.files.pools.of(b, rec)
	if err != nil {
		return 0, err
	}
	if size, ok := f.files.known(fileKey{p, rec.Device}); ok {
		return uint64(size), nil
	}
	var dev stub.Device
	err = p.with(func(s stub.Store) (err error) { dev, err = deviceOf(s, rec); return err })
	return uint64(dev.Size), err
}

var (
	errForeign   = fmt.Errorf("it belongs to another file: %w", unix.EIO)
	errOtherPool = fmt.Errorf("it is in another pool than pool= says: %w", unix.EIO)
)

// deviceOf returns the device that a stub names, if it is that stub's.
func deviceOf(s stub.Store, rec stub.Record) (stub.Device, error) {
	if rec.Pool != stub.Private && rec.Pool != s.ID() {
		return stub.Device{}, errOtherPool
	}
	dev, err := s.Info(rec.Device)
	if err == nil && dev.Key != rec.Key {
		err = errForeign
	}
	return dev, err
}

// openStub opens the device that s, open at fd, names. Preconditions: s.mu is held.
func (f *FS) openStub(s *stubFile, fd int) (*blockFile, error) {
	p, err := f.files.pools.of(s.branch, s.rec)
	if err != nil {
		return nil, err
	}
	if s.write {
		if err := f.adoptStub(s, p, fd); err != nil {
			return nil, err
		}
	}
	key := fileKey{p, s.rec.Device}
	return f.files.acquire(key, s.write, func() (*blockFile, error) { return f.openDevice(s, key) })
}

func (f *FS) openDevice(s *stubFile, key fileKey) (d *blockFile, err error) {
	store, err := key.pool.use(false)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			key.pool.done()
		}
	}()
	dev, err := deviceOf(store, s.rec)
	if err != nil {
		return nil, err
	}
	d = &blockFile{key: key, write: s.write}
	if o := dev.Origin; o != nil && o.Valid > 0 {
		fd, err := f.stack.FindOrigin(s.branch, o, f.opts.OriginPaths)
		if err != nil {
			return nil, err
		}
		d.origin = &originFile{fd}
	}
	if d.origin != nil {
		d.blocks, err = store.Open(key.device, d.origin, s.write)
	} else {
		d.blocks, err = store.Open(key.device, nil, s.write)
	}
	if err != nil && d.origin != nil {
		sys.Close(d.origin.fd)
	}
	return d, err
}

// adoptStub gives the stub s a device of its own if it is a copy that somebody
// has made of another: a snapshot. Preconditions: s.mu is held.
func (f *FS) adoptStub(s *stubFile, p *pool, fd int) error {
	bf := &f.files
	id, err := bf.pools.upper(s.branch)
	if err != nil {
		return err
	}
	inode, err := stub.Inode(fd, "")
	if err != nil {
		return err
	}
	bf.adopting.Lock()
	defer bf.adopting.Unlock()
	rec, ok, err := stub.Read(fd, "")
	if err != nil || !ok {
		return fmt.Errorf("its attribute has changed: %w", unix.EIO)
	}
	s.rec = rec
	return p.with(func(store stub.Store) error {
		dev, err := deviceOf(store, rec)
		switch {
		case err != nil:
			return err
		case dev.Upper == id && dev.Stub == inode:
			return nil
		}
		own := stub.Device{Name: stub.DeviceName(fileOf(s.path)), Upper: id, Stub: inode, Key: stub.NewKey(), State: stub.Creating}
		if err := store.Snapshot(own, rec.Device); err != nil {
			return err
		}
		s.rec = stub.Record{Pool: rec.Pool, Device: own.Name, Key: own.Key}
		if err := f.writeRecord(s.branch, fd, s.rec); err != nil {
			_ = store.Delete(own.Name)
			return err
		}
		return store.SetState(own.Name, own.Key, "")
	})
}

// writeRecord makes the open file fd in b the stub of a device, durably.
func (f *FS) writeRecord(b *branches.Branch, fd int, r stub.Record) error {
	if err := sys.SetXattr(fd, "", string(b.Format.NS)+stub.Attr, []byte(r.String()), 0); err != nil {
		return err
	}
	return sys.Fsync(fd)
}

// fileOf is the last component of a path.
func fileOf(p string) string { return path.Base(p) }
