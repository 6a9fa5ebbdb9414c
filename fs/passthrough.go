package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// Backings lets the kernel read, write and map open files of branches by itself.
type Backings interface {
	OpenBacking(fd int) (id int32, err error)
	CloseBacking(id int32) error
}

// SetBackings gives f the way to have the kernel do reads and writes itself
// (Options.Passthrough).
func (f *FS) SetBackings(b Backings) { f.kernel.Store(&b) }

// passLocked has the kernel read and write n, open as b, by itself if that can be, and
// says so in out. All who have a file open at the same time do it in the same way
// (fuse_file_io_open): the first decides. A lower file may be copied up while
// it is open, unless nothing is ever changed, and a stub has its content elsewhere.
// Nor does the kernel clear set-user-id and set-group-id bits when it writes for us:
// a file that has them is not passed, one that gets them while it is open keeps them.
// Preconditions: n.mu is held, the handle is counted.
func (f *FS) passLocked(n *node, b *backing, out *fuse.OpenOut) {
	kernel := f.kernel.Load()
	if !f.opts.Passthrough || kernel == nil {
		return
	}
	if n.opens == 1 && n.typ == unix.S_IFREG && n.back == b && f.mayPassLocked(n, b) {
		if id, err := (*kernel).OpenBacking(b.fd); err == nil {
			n.passed, n.backingID = true, id
		}
	}
	switch {
	case n.backingID != 0:
		out.OpenFlags = fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH
		out.BackingID = n.backingID
	case n.passed: // what the kernel has of it in its cache may be older
		out.OpenFlags &^= fuse.FOPEN_KEEP_CACHE
	}
}

// mayPassLocked is what passLocked says of the file n, open as b.
// Preconditions: n.mu is held.
func (f *FS) mayPassLocked(n *node, b *backing) bool {
	if b.stub != nil || b.appends || f.opts.XattrPermissions != 0 {
		return false
	}
	if f.readOnly() {
		return true
	}
	st, err := sys.FStat(b.fd)
	return err == nil && n.home != nil && b.writable && st.Mode&(unix.S_ISUID|unix.S_ISGID) == 0
}

// unpassLocked ends what passLocked has begun, after the last close.
// Preconditions: n.mu is held.
func (f *FS) unpassLocked(n *node) {
	if n.backingID != 0 {
		_ = (*f.kernel.Load()).CloseBacking(n.backingID) // fails only after the unmount
		n.backingID = 0
	}
}
