package volume

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/internal/errs"
)

// ReaderAt is an open external origin.
type ReaderAt interface {
	ReadAt(p []byte, off int64) (int, error)
}

// origin is the file that answers for blocks that are not mapped.
type origin struct {
	f     ReaderAt
	own   *os.File // to be closed, or nil
	valid int64    // bytes that show through; changed with the volume's io held
}

// openOrigin opens the file, and refuses one that is not as it was when the
// device was made: its blocks would be mixed with somebody else's.
func openOrigin(o *blockstore.Origin, f ReaderAt) (*origin, error) {
	if f != nil {
		return &origin{f: f, valid: o.Valid}, nil
	}
	own, err := os.OpenFile(o.Path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errs.New(errs.Corrupt, "external origin: %w", err)
	}
	now, err := Identify(own)
	if err == nil && (now.Size != o.Size || now.Mtime != o.Mtime) {
		err = errs.New(errs.Corrupt, "external origin %s has changed since the device was made: %w", o.Path, unix.EIO)
	}
	if err != nil {
		own.Close()
		return nil, err
	}
	return &origin{f: own, own: own, valid: o.Valid}, nil
}

// Identify describes an open file as an external origin.
func Identify(f *os.File) (*blockstore.Origin, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, errs.New(errs.Usage, "%s is not a regular file", f.Name())
	}
	return &blockstore.Origin{Path: f.Name(), Size: fi.Size(), Valid: fi.Size(),
		Mtime: fi.ModTime().UnixNano(), Ino: fi.Sys().(*syscall.Stat_t).Ino}, nil
}

// read fills p from off; what lies beyond the valid part is zeros.
func (o *origin) read(p []byte, off int64) error {
	n := min(int64(len(p)), max(0, o.valid-off))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	got, err := o.f.ReadAt(p[:n], off)
	if int64(got) == n {
		return nil
	}
	if err == nil || err.Error() == "EOF" {
		return errs.New(errs.Corrupt, "the external origin has become shorter: %w", unix.EIO)
	}
	return err
}

func (o *origin) close() {
	if o.own != nil {
		o.own.Close()
	}
}
