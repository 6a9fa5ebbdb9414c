package fusefile

import (
	"fmt"
	"io"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Open implements fuse.RawFileSystem.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	n.openMu.Lock()
	defer n.openMu.Unlock()
	if n.active.Load() == nil {
		if err := f.activateLocked(n); err != nil {
			return status(err)
		}
	}
	f.countOpenLocked(n, 1)
	if f.notify != nil {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE // activateLocked has dropped what was stale
	}
	if in.Flags&unix.O_ACCMODE == unix.O_RDONLY {
		out.OpenFlags |= fuse.FOPEN_NOFLUSH
	}
	return fuse.OK
}

// Release implements fuse.RawFileSystem.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return
	}
	n.openMu.Lock()
	defer n.openMu.Unlock()
	defer f.countOpenLocked(n, -1)
	if n.opens == 1 {
		if err := n.deactivateLocked(); err != nil {
			f.opts.Log.Printf("closing device %s: %v", n.entry().Name, err)
		}
	}
}

// done ends the use of a device by a request. If the mount ended meanwhile it
// is the last one, and nobody else is there to be told of a failure.
func (f *FS) done(n *node, a *active) {
	if err := a.release(); err != nil {
		f.opts.Log.Printf("closing device %s: %v", n.entry().Name, err)
	}
}

// within returns how many of length bytes at off a device of size bytes has.
func within(size int64, off, length uint64) int64 {
	if size <= 0 || off >= uint64(size) {
		return 0
	}
	return int64(min(length, uint64(size)-off))
}

// readResult reads straight into the reply.
type readResult struct {
	fs   *FS
	node *node
	dev  *active
	off  int64
	size int
}

func (r *readResult) Size() int { return r.size }
func (r *readResult) Done()     { r.fs.done(r.node, r.dev) }

// Bytes implements fuse.ReadResult.
func (r *readResult) Bytes(buf []byte) ([]byte, fuse.Status) {
	buf = buf[:r.size]
	_, code := r.Readv([][]byte{buf})
	return buf, code
}

// Readv is what go-fuse's protocol server prefers to Bytes. It runs outside of
// the handler, whose panics alone are caught.
func (r *readResult) Readv(dst [][]byte) (n int, code fuse.Status) {
	defer func() {
		if p := recover(); p != nil {
			n, code = 0, r.fs.panicked(p)
		}
	}()
	for _, p := range dst {
		if err := readFull(r.dev, p, r.off+int64(n)); err != nil {
			return 0, status(err)
		}
		n += len(p)
	}
	return n, fuse.OK
}

// readFull reads all of p. From fewer bytes the kernel would conclude that the
// file has become shorter (fuse_short_read).
func readFull(d Device, p []byte, off int64) error {
	n, err := d.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || err == io.EOF:
		return fmt.Errorf("%d of %d bytes at %d: %w", n, len(p), off, io.ErrUnexpectedEOF)
	}
	return err
}

// Read implements fuse.RawFileSystem.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, a, code := f.use(in.NodeId)
	if !code.Ok() {
		return nil, code
	}
	size := within(a.Size(), in.Offset, uint64(len(buf)))
	return &readResult{f, n, a, int64(in.Offset), int(size)}, fuse.OK
}

// Write implements fuse.RawFileSystem.
func (f *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, a, code := f.use(in.NodeId)
	if !code.Ok() {
		return 0, code
	}
	defer f.done(n, a)
	data = data[:within(a.Size(), in.Offset, uint64(len(data)))]
	if len(data) == 0 {
		return 0, fuse.Status(unix.ENOSPC) // blkdev_write_iter
	}
	w, err := writeAt(a.Device, cancel, data, int64(in.Offset))
	n.modified(a)
	if w > 0 {
		return uint32(w), fuse.OK // a short write; the caller sees the error when it goes on
	}
	return 0, status(err)
}

// Flush implements fuse.RawFileSystem. It is called by each close(2) of a handle
// for writing, the last chance to tell of an error.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	n, a, code := f.use(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.done(n, a)
	return status(a.flushWritten())
}

// Fsync implements fuse.RawFileSystem.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, a, code := f.use(in.NodeId)
	if !code.Ok() {
		return code
	}
	defer f.done(n, a)
	return status(a.flush())
}
