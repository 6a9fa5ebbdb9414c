package blockstore

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// DataFile is the file that the data blocks live in: block b is at b times
// the block size, nothing else is in it. Offsets and lengths are bytes.
type DataFile interface {
	// ReadAt reads all of p; what is beyond the end of the file, or a hole,
	// is zeros.
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Sync makes durable what was written before it.
	Sync() error
	// Resize sets the length, durably.
	Resize(size int64) error
	Size() (int64, error)
	// Punch gives the space of a range back; it reads as zeros afterwards.
	// EOPNOTSUPP where the file system cannot.
	Punch(off, length int64) error
	// NextData returns the first offset in [off, end) that may hold
	// something else than zeros, or end.
	NextData(off, end int64) int64
	// HostFree is how many bytes the file system has left.
	HostFree() (int64, error)
	Close() error
}

// osData is a DataFile on disk.
type osData struct{ f *os.File }

// OpenData opens the data file of the pool in dir. Every user has a
// descriptor of its own, because the kernel reports a failed write-back once
// to each.
func OpenData(dir string) (DataFile, error) {
	return openDataFile(filepath.Join(dir, dataName), os.O_RDWR)
}

func openDataFile(path string, flags int) (*osData, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, errs.New(errs.Corrupt, "%s is not a regular file", path)
	}
	return &osData{f}, nil
}

// DataFrom is a DataFile over a descriptor that another process passed.
func DataFrom(f *os.File) DataFile { return &osData{f} }

func (d *osData) fd() int { return int(d.f.Fd()) }

func (d *osData) ReadAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		n, err := sys.PRead(d.fd(), p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		if n == 0 {
			clear(p[done:])
			break
		}
		done += n
	}
	return len(p), nil
}

// Cached reports whether the byte at off can be read without the disk.
func (d *osData) Cached(off int64) bool { return sys.Cached(d.fd(), off) }

// Ahead has a range read into the cache, and does not wait for it.
func (d *osData) Ahead(off, length int64) { sys.ReadAhead(d.fd(), off, length) }

func (d *osData) WriteAt(p []byte, off int64) (int, error) {
	if err := sys.PWriteAll(d.fd(), p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (d *osData) Sync() error { return sys.Fdatasync(d.fd()) }

func (d *osData) Resize(size int64) error {
	if err := sys.Ftruncate(d.fd(), size); err != nil {
		return err
	}
	return sys.Fsync(d.fd())
}

func (d *osData) Size() (int64, error) {
	fi, err := d.f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (d *osData) Punch(off, length int64) error {
	return sys.Fallocate(d.fd(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
}

func (d *osData) NextData(off, end int64) int64 {
	at, err := sys.Seek(d.fd(), off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO:
		return end
	case err != nil || at < off:
		return off
	}
	return min(at, end)
}

func (d *osData) HostFree() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(d.fd(), &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

func (d *osData) Close() error { return d.f.Close() }
