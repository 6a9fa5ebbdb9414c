package fs

import (
	"errors"
	"path"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
)

// errNotByBlocks says that a file has to be copied up in full.
var errNotByBlocks = errors.New("not by blocks")

// wantsBlocks reports whether a file of branch from, of that size when it is
// copied, is to be copied up by blocks. What may change below the device must
// not be its origin: a file in a writable branch, or one that others may change.
func (f *FS) wantsBlocks(from *branches.Branch, size int64, moved bool) bool {
	return f.opts.CopyUp != CopyFull && f.opts.Pools != nil && size >= f.opts.Threshold &&
		!from.Writable() && !moved && !f.opts.Outside
}

// sizeOfCopy is how long the copy of a file will be, and how much of the file
// shows in it.
func sizeOfCopy(st *sys.Stat, c *cut) (size, valid int64) {
	size = int64(st.Size)
	if c == nil {
		return size, size
	}
	return c.size, min(size, c.size)
}

// copyByBlocks makes the copy, which lies open at dst and is empty, a stub whose
// device shows the lower file src, of which st are the attributes and rel is the
// path in its branch. errNotByBlocks: it is as it was.
func (f *FS) copyByBlocks(n *node, src int, rel string, dst int, cp *copied, st *sys.Stat, c *cut) (*backing, error) {
	low, err := sys.FStat(src)
	if err != nil {
		return nil, err
	}
	size, valid := sizeOfCopy(st, c)
	if low.Size != st.Size {
		return nil, errNotByBlocks
	}
	id, err := f.files.pools.upper(cp.to)
	if err != nil {
		return nil, f.insteadInFull(cp.to, err)
	}
	inode, err := stub.Inode(dst, "")
	if err != nil {
		return nil, err
	}
	p, store, word, err := f.files.pools.forNew(cp.to)
	if err != nil {
		return nil, f.insteadInFull(cp.to, err)
	}
	defer p.done()
	dev := stub.Device{
		Name: stub.DeviceName(path.Base(rel)), Size: size, Upper: id, Stub: inode, Key: stub.NewKey(), State: stub.Creating,
		Origin: &stub.Origin{Path: filepath.Join(cp.from.Path, rel), Rel: rel, Size: int64(low.Size), Mtime: branches.MtimeOf(&low), Ino: low.Ino, Valid: valid},
	}
	if err := store.Create(dev); err != nil {
		return nil, f.insteadInFull(cp.to, err)
	}
	rec := stub.Record{Pool: word, Device: dev.Name, Key: dev.Key}
	err = sys.PWriteAll(dst, stub.Text(), 0)
	if err == nil {
		err = sys.SetXattr(dst, "", string(cp.to.Format.NS)+stub.Attr, []byte(rec.String()), 0)
	}
	if err != nil {
		_ = sys.RemoveXattr(dst, "", string(cp.to.Format.NS)+stub.Attr)
		_ = store.Delete(dev.Name)
		if e := sys.Ftruncate(dst, 0); e != nil {
			return nil, e
		}
		return nil, f.insteadInFull(cp.to, err)
	}
	back := f.newBacking(dst, true)
	n.mu.Lock()
	name := pathLocked(n)
	n.mu.Unlock()
	back.stub = &stubFile{fs: f, branch: cp.to, write: true, path: name, rec: rec}
	f.counters.blockCopyUps.Add(1)
	f.counters.notCopied.Add(valid)
	return back, nil
}

// insteadInFull says, once for each reason, why files are copied up in full
// though they need not be.
func (f *FS) insteadInFull(to *branches.Branch, err error) error {
	f.trouble("no copy-up by blocks in %s: %v", to.Path, err)
	return errNotByBlocks
}

// inPlace notes that the file of a stub is where it belongs.
func (f *FS) inPlace(back *backing) {
	s := back.stub
	if s == nil {
		return
	}
	s.mu.Lock()
	rec := s.rec
	s.mu.Unlock()
	p, err := f.files.pools.of(s.branch, rec)
	if err != nil {
		return
	}
	f.files.later(func() error {
		// What is still called unfinished is looked at after a crash, and kept.
		_ = p.with(func(store stub.Store) error { return store.SetState(rec.Device, rec.Key, "") })
		return nil
	})
}

// reflinks remembers between which file systems no content can be shared.
type reflinks struct {
	mu   sync.Mutex
	none map[[2]uint64]bool
}

// clone makes the empty file dst share the content of src; done is false where
// the file system cannot do that.
func (r *reflinks) clone(dst, src int, to, from uint64) (done bool) {
	pair := [2]uint64{to, from}
	r.mu.Lock()
	none := r.none[pair]
	r.mu.Unlock()
	if none {
		return false
	}
	err := sys.Reflink(dst, src)
	if err == unix.EOPNOTSUPP || err == unix.EXDEV || err == unix.ENOTTY || err == unix.EINVAL {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.none == nil {
			r.none = map[[2]uint64]bool{}
		}
		r.none[pair] = true
	}
	return err == nil
}

// copyStub copies the first size bytes of the stub src, as far as it has them,
// to the empty file dst; holes stay holes, and dst is size bytes long in the end.
func copyStub(dst int, src *backing, size int64) error {
	end, err := src.seekEnd()
	if err != nil {
		return err
	}
	buf := make([]byte, copyChunk)
	for off := int64(0); off < min(size, end); {
		start, err := src.seek(off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return err
		}
		stop, err := src.seek(start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := copyPart(dst, src, buf, start, min(stop, size)); err != nil {
			return err
		}
		off = stop
	}
	return sys.Ftruncate(dst, size)
}

// copyPart copies one stretch of a stub.
func copyPart(dst int, src *backing, buf []byte, off, end int64) error {
	for off < end {
		n, err := src.read(buf[:min(end-off, int64(len(buf)))], off)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		if err := sys.PWriteAll(dst, buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}
