package fusefile

import (
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// How much of a device is looked at in one step when data or a hole is
	// sought. It doubles from step to step, so that neither a fragmented device
	// makes long lists nor a large empty one many steps.
	firstSpan = 64 << 20 // bytes
	lastSpan  = 16 << 30
)

// Fallocate implements fuse.RawFileSystem.
func (f *FS) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	n, a, code := f.use(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.done(n, a)
	var mayUnmap bool
	switch in.Mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case unix.FALLOC_FL_PUNCH_HOLE:
		mayUnmap = true
	case unix.FALLOC_FL_ZERO_RANGE:
	default:
		return fuse.Status(unix.EOPNOTSUPP)
	}
	length := within(a.Size(), in.Offset, in.Length)
	if uint64(length) < in.Length && in.Mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		return fuse.Status(unix.ENOSPC)
	}
	if length == 0 {
		return fuse.OK
	}
	err := zero(a.Device, cancel, int64(in.Offset), length, mayUnmap)
	n.modified(a)
	return status(err)
}

// Lseek implements fuse.RawFileSystem: SEEK_DATA and SEEK_HOLE, the others the
// kernel does itself.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n, a, code := f.use(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.done(n, a)
	size := a.Size()
	if within(size, in.Offset, 1) == 0 {
		return fuse.Status(unix.ENXIO)
	}
	var off int64
	var err error
	switch in.Whence {
	case unix.SEEK_DATA:
		off, err = seek(a, int64(in.Offset), size, true)
		if err == nil && off == size {
			err = unix.ENXIO
		}
	case unix.SEEK_HOLE:
		off, err = seek(a, int64(in.Offset), size, false)
	default:
		err = unix.EINVAL
	}
	out.Offset = uint64(off)
	return status(err)
}

// seek returns where data, or a hole, begins at or after off, or size.
func seek(d Device, off, size int64, data bool) (int64, error) {
	for span := int64(firstSpan); off < size; span = min(2*span, lastSpan) {
		end := min(off+span, size)
		extents, err := d.Extents(off, end-off)
		if err != nil {
			return 0, err
		}
		for _, e := range extents {
			if e.Data == data {
				return off, nil
			}
			off += e.Length
		}
		if off != end {
			return 0, fmt.Errorf("extents up to %d end at %d: %w", end, off, unix.EIO)
		}
	}
	return size, nil
}
