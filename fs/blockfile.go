package fs

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
)

// blockFile is the open content of a stub: a device over its origin. All
// who have the file open share one.
type blockFile struct {
	key    fileKey
	blocks stub.Blocks
	write  bool        // it was opened to be changed. Immutable.
	origin *originFile // nil for a device that shows none

	// size is held for writing by those who change the size, for reading by
	// those who write below it.
	size sync.RWMutex

	refs int       // protected by blockFiles.mu
	used time.Time // when refs became 0. Protected by blockFiles.mu.

	times atomic.Pointer[times] // what the file shows while its inode has others, because it is settled
	watch dirt                  // of a settle that is under way
}

// originFile is the lower file below a device.
type originFile struct{ fd int }

// ReadAt implements io.ReaderAt.
func (o *originFile) ReadAt(p []byte, off int64) (int, error) { return sys.ReadFullAt(o.fd, p, off) }

func (d *blockFile) close() error {
	err := d.blocks.LetGo()
	if d.origin != nil {
		sys.Close(d.origin.fd)
	}
	return err
}

// readAt reads up to the end of the file.
func (d *blockFile) readAt(p []byte, off int64) (int, error) {
	size := d.blocks.Size()
	if off >= size {
		return 0, nil
	}
	n, err := d.blocks.ReadAt(p[:min(int64(len(p)), size-off)], off)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// writeAt writes p; the file grows as far as that succeeds.
func (d *blockFile) writeAt(p []byte, off int64) (int, error) {
	defer d.watch.changed(off, int64(len(p)))
	end := off + int64(len(p))
	d.size.RLock()
	if end <= d.blocks.Size() {
		defer d.size.RUnlock()
		return d.blocks.WriteAt(p, off)
	}
	d.size.RUnlock()
	d.size.Lock()
	defer d.size.Unlock()
	n := 0
	err := d.growing(end, func() (until int64, err error) {
		n, err = d.blocks.WriteAt(p, off)
		return off + int64(n), err
	})
	return n, err
}

// growing makes the file at least end bytes long and calls change, which says
// how far it came when it fails. Preconditions: d.size is held for writing.
func (d *blockFile) growing(end int64, change func() (int64, error)) error {
	old := d.blocks.Size()
	if err := d.blocks.Extend(end); err != nil {
		return err
	}
	until, err := change()
	if err != nil && end > old {
		if until = max(old, until); until < end {
			if e := d.blocks.Resize(until); e != nil {
				return e
			}
		}
	}
	return err
}

func (d *blockFile) truncate(size int64) error {
	defer d.watch.all()
	d.size.Lock()
	defer d.size.Unlock()
	return d.blocks.Resize(size)
}

func (d *blockFile) fallocate(mode uint32, off, length int64) error {
	defer d.watch.all()
	d.size.Lock()
	defer d.size.Unlock()
	size := d.blocks.Size()
	end := off + length
	within := max(0, min(end, size)-off) // of the range, what is before the end of the file
	keep := mode&unix.FALLOC_FL_KEEP_SIZE != 0
	switch mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case unix.FALLOC_FL_PUNCH_HOLE:
		if within == 0 {
			return nil
		}
		return d.blocks.Zero(off, within)
	case unix.FALLOC_FL_ZERO_RANGE:
		if within > 0 {
			if err := d.blocks.Zero(off, within); err != nil {
				return err
			}
		}
		if keep || end <= size {
			return nil
		}
		return d.blocks.Extend(end)
	case 0:
		if keep && within == 0 {
			return nil // space beyond the end is not promised
		}
		if keep {
			return d.blocks.Provision(off, within)
		}
		return d.growing(max(end, size), func() (int64, error) { return size, d.blocks.Provision(off, length) })
	}
	return unix.EOPNOTSUPP
}

// seekWindow is how much of a file is looked at in one step.
const seekWindow = 1 << 30

// seek is lseek with SEEK_DATA or SEEK_HOLE.
func (d *blockFile) seek(off int64, whence int) (int64, error) {
	size := d.blocks.Size()
	if off < 0 || off >= size {
		return 0, unix.ENXIO
	}
	for at := off; at < size; {
		list, err := d.blocks.Layout(at, seekWindow)
		if err != nil {
			return 0, err
		}
		if len(list) == 0 { // the file has become shorter
			break
		}
		for _, s := range list {
			if found, ok := d.seekIn(s, at, whence); ok {
				return found, nil
			}
			at += s.Length
		}
	}
	if whence == unix.SEEK_HOLE {
		return size, nil
	}
	return 0, unix.ENXIO
}

// seekIn looks for data or a hole in the stretch s, which begins at at.
func (d *blockFile) seekIn(s stub.Stretch, at int64, whence int) (int64, bool) {
	switch {
	case s.Kind == stub.Zeros:
		return at, whence == unix.SEEK_HOLE
	case s.Kind == stub.Data || d.origin == nil:
		return at, whence == unix.SEEK_DATA
	}
	found, err := sys.Seek(d.origin.fd, at, whence)
	switch {
	case err == unix.ENXIO:
		return 0, false
	case err != nil || found < at: // no file system with holes: all is data
		return at, whence == unix.SEEK_DATA
	}
	return found, found < at+s.Length
}

// copyChunk is how much a copy between files moves at a time, and copyMost how
// much one request does.
const (
	copyChunk = 1 << 20
	copyMost  = 16 << 20
)

// copyRange copies between two open files of which one or both are stubs, and
// returns how much it copied.
func copyRange(src *backing, off int64, dst *backing, dstOff, length int64) (int, error) {
	length = min(length, copyMost)
	buf := make([]byte, min(length, copyChunk))
	done := int64(0)
	for done < length {
		n, err := src.read(buf[:min(length-done, copyChunk)], off+done)
		if err == nil && n > 0 {
			n, err = dst.write(buf[:n], dstOff+done)
		}
		done += int64(n)
		if err != nil && done == 0 {
			return 0, err
		}
		if err != nil || n == 0 {
			break
		}
	}
	return int(done), nil
}
