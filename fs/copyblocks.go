package fs

import (
	"errors"
	"io"
	"path"
	"path/filepath"
	"slices"
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
// The origin of a stub is in some branch below it.
func (f *FS) wantsBlocks(from *branches.Branch, size int64, isStub, moved bool) bool {
	return f.opts.CopyUp != CopyFull && f.opts.Pools != nil && size >= f.opts.Threshold &&
		!from.Writable() && !moved && !f.opts.Outside &&
		!(isStub && slices.ContainsFunc(f.stack.Writable(), func(b *branches.Branch) bool { return b.Index > from.Index }))
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
// device shows the lower file src, of which st are the attributes.
// errNotByBlocks: it is as it was.
func (f *FS) copyByBlocks(n *node, src *backing, dst int, cp *copied, st *sys.Stat, c *cut) (*backing, error) {
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
	dev := stub.Device{Name: stub.DeviceName(path.Base(cp.rel)), Upper: id, Stub: inode, Key: stub.NewKey(), State: stub.Creating}
	moved := int64(0)
	if src.stub == nil {
		err = createOver(store, dev, src.fd, cp, st, c)
	} else {
		moved, err = f.createLike(p, store, dev, src)
	}
	if err == errNotByBlocks {
		return nil, err
	}
	if err != nil {
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
	_, valid := sizeOfCopy(st, c)
	f.counters.blockCopyUps.Add(1)
	f.counters.notCopied.Add(max(0, valid-moved))
	f.counters.copiedBytes.Add(moved)
	if src.stub != nil && c != nil {
		err = back.cutShort(c.size)
	}
	return back, err
}

// createOver makes dev the device of a copy of the plain lower file that is open
// at src.
func createOver(store stub.Store, dev stub.Device, src int, cp *copied, st *sys.Stat, c *cut) error {
	low, err := sys.FStat(src)
	if err != nil {
		return err
	}
	if low.Size != st.Size { // something is mounted on it, or somebody changes it
		return errNotByBlocks
	}
	size, valid := sizeOfCopy(st, c)
	dev.Size = size
	dev.Origin = &stub.Origin{Path: filepath.Join(cp.from.Path, cp.rel), Rel: cp.rel, Size: int64(low.Size),
		Mtime: branches.MtimeOf(&low), Ino: low.Ino, Valid: valid}
	return store.Create(dev)
}

// createLike makes dev a device of the pool p that shows what the lower stub src
// does: a snapshot of its device if that is in p, else one over the same lower
// file with copies of its blocks, of which it returns the size.
func (f *FS) createLike(p *pool, store stub.Store, dev stub.Device, src *backing) (moved int64, err error) {
	d, err := src.data()
	if err != nil {
		return 0, err
	}
	if d.key.pool == p {
		return 0, store.Snapshot(dev, d.key.device)
	}
	err = d.key.pool.with(func(from stub.Store) error {
		like, err := from.Info(d.key.device)
		dev.Size, dev.Origin = like.Size, like.Origin
		return err
	})
	if err == nil {
		err = store.Create(dev)
	}
	if err != nil {
		return 0, err
	}
	if moved, err = d.copyBlocks(store, dev.Name); err != nil {
		_ = store.Delete(dev.Name)
	}
	return moved, err
}

// copyBlocks gives the new device called to, which lies over the same lower file,
// durably what d has of its own.
func (d *blockFile) copyBlocks(store stub.Store, to string) (moved int64, err error) {
	var origin io.ReaderAt
	if d.origin != nil {
		origin = d.origin
	}
	dst, err := store.Open(to, origin, true)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dst.LetGo()) }()
	buf := make([]byte, copyChunk)
	for at, size := int64(0), d.blocks.Size(); at < size; {
		list, err := d.blocks.Layout(at, seekWindow)
		if err == nil && len(list) == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return moved, err
		}
		for _, s := range list {
			switch s.Kind {
			case stub.Data:
				err = d.copyStretch(dst, buf, at, s.Length)
				moved += s.Length
			case stub.Zeros:
				err = dst.Zero(at, s.Length)
			}
			if err != nil {
				return moved, err
			}
			at += s.Length
		}
	}
	return moved, dst.Flush()
}

func (d *blockFile) copyStretch(dst stub.Blocks, buf []byte, off, length int64) error {
	for end := off + length; off < end; {
		n, err := d.readAt(buf[:min(end-off, int64(len(buf)))], off)
		if err == nil {
			_, err = dst.WriteAt(buf[:n], off)
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF // nobody changes it
		}
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// cutShort sets the size of a stub that nobody has seen yet, durably.
func (b *backing) cutShort(size int64) error {
	d, err := b.data()
	if err == nil {
		err = d.truncate(size)
	}
	if err == nil {
		err = d.blocks.Flush()
	}
	return err
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
