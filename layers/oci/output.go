package oci

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// ToFile calls write with a file that gets its name, in place of one that may
// have it, only when write has succeeded. Something else than a regular file
// (a pipe, a device) is written to as it is.
func ToFile(name string, write func(io.Writer) error) error {
	if real, err := filepath.EvalSymlinks(name); err == nil {
		name = real
	}
	if fi, err := os.Stat(name); err == nil && !fi.Mode().IsRegular() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("output %s: %w", name, err)
		}
		defer f.Close()
		return write(f)
	}
	o, err := newOutput(name)
	if err != nil {
		return errs.New(errs.Of(err), "output %s cannot be made: %w", name, err)
	}
	defer o.close()
	if err := write(o.f); err != nil {
		return err
	}
	if err := o.publish(); err != nil {
		return errs.New(errs.Of(err), "output %s: %w", name, err)
	}
	return nil
}

// output is a file on the way to its name.
type output struct {
	f         *os.File
	dir       int
	name, tmp string
	linked    bool // it lies under tmp
}

// newOutput opens a file without a name, which nothing can leave behind; where
// the file system cannot have that, one with a temporary name.
func newOutput(path string) (*output, error) {
	dir, err := sys.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	o := &output{dir: dir, name: filepath.Base(path)}
	o.tmp = fmt.Sprintf(".%.200s.%d", o.name, os.Getpid())
	fd, err := unix.Open(filepath.Dir(path), unix.O_WRONLY|unix.O_TMPFILE|unix.O_CLOEXEC, 0666)
	if err != nil {
		fd, err = sys.OpenIn(dir, o.tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0666)
		o.linked = err == nil
	}
	if err != nil {
		sys.Close(dir)
		return nil, err
	}
	o.f = os.NewFile(uintptr(fd), path)
	return o, nil
}

func (o *output) publish() error {
	if !o.linked {
		if err := sys.LinkFd(int(o.f.Fd()), o.dir, o.tmp); err != nil {
			return err
		}
		o.linked = true
	}
	err := sys.Rename(o.dir, o.tmp, o.dir, o.name, 0)
	o.linked = err != nil
	return err
}

func (o *output) close() {
	if o.linked {
		_ = sys.Unlink(o.dir, o.tmp)
	}
	o.f.Close()
	sys.Close(o.dir)
}
