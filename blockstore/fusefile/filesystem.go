package fusefile

import (
	"context"
	"errors"
	"fmt"
	"log"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/fusedev"
)

const (
	rootID = fuse.FUSE_ROOT_ID

	// A device's node id, which is also its inode number, is its own id after
	// the root's.
	firstNode = rootID + 1

	// valid is how long the kernel may keep names and attributes.
	valid = time.Second

	maxWrite = 1 << 20 // bytes; the most that the kernel puts into one request

	nameMax = 255
)

// Options are the properties of a mount.
type Options struct {
	UID, GID uint32      // whom all files belong to
	Log      *log.Logger // nil: log.Default()
}

// notifier tells the kernel to drop what it has cached of a file.
type notifier interface {
	InvalInode(node uint64, off, length int64) error
}

// FS shows devices as files. It implements fuse.RawFileSystem.
type FS struct {
	fuse.RawFileSystem // answers ENOSYS to what is not implemented here

	opts    Options // immutable
	devices Devices // immutable
	started time.Time
	notify  notifier // nil: there is no such way. Set before the first request.

	mu    sync.Mutex
	nodes map[uint64]*node      // those that the kernel remembers, by node id; protected by mu
	dirs  map[uint64]*dirHandle // open directories; protected by mu
	next  uint64                // the next directory handle; protected by mu
}

// New returns a file system that shows devices.
func New(devices Devices, opts Options) *FS {
	if opts.Log == nil {
		opts.Log = log.Default()
	}
	return &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		opts:          opts,
		devices:       devices,
		started:       time.Now(),
		nodes:         map[uint64]*node{},
		dirs:          map[uint64]*dirHandle{},
	}
}

// Mount mounts f on mountpoint, an absolute path. source is what the mount
// table shows. allowOther is what it takes for other users, root included, to
// use the files, as far as their modes let them.
//
// The caller serves with conn.Serve(f, f.FuseOptions()), and calls conn.Close
// and f.Close when that has returned.
func (f *FS) Mount(mountpoint, source string, allowOther bool) (*fusedev.Conn, error) {
	conn, err := fusedev.Mount(fusedev.MountConfig{
		Mountpoint:         mountpoint,
		FsName:             source,
		Subtype:            "layerfs-pool",
		Flags:              unix.MS_NOSUID | unix.MS_NODEV,
		AllowOther:         allowOther,
		DefaultPermissions: true,
		MaxRead:            maxWrite,
	})
	if err == nil {
		f.notify = conn
	}
	return conn, err
}

// FuseOptions returns what is to be negotiated with the kernel.
func (f *FS) FuseOptions() *fuse.MountOptions {
	return &fuse.MountOptions{
		Name:                     "layerfs-pool",
		MaxWrite:                 maxWrite,
		MaxReadAhead:             maxWrite,
		MaxBackground:            64,
		ExplicitDataCacheControl: true,
		DisableXAttrs:            true,
		Logger:                   f.opts.Log,
		// Node ids mean nothing to the next mount: no handles for NFS.
		ExtraCapabilities: fuse.CAP_NO_EXPORT_SUPPORT,
		PanicHandler:      func(p any) fuse.Status { return f.panicked(p) },
	}
}

// panicked is the answer to a request whose handler panicked with p.
func (f *FS) panicked(p any) fuse.Status {
	f.opts.Log.Printf("panic in a handler: %v\n%s", p, debug.Stack())
	return fuse.EIO
}

// String implements fuse.RawFileSystem.
func (f *FS) String() string { return "layerfs-pool" }

// Init implements fuse.RawFileSystem.
func (f *FS) Init(*fuse.Server) {}

// Close flushes and closes the devices whose files were still open when the
// mount ended. A device that is in use by a request is closed after it.
func (f *FS) Close() error {
	f.mu.Lock()
	nodes := make([]*node, 0, len(f.nodes))
	for _, n := range f.nodes {
		nodes = append(nodes, n)
	}
	f.mu.Unlock()
	var failed []error
	for _, n := range nodes {
		n.openMu.Lock()
		if err := n.deactivateLocked(); err != nil {
			failed = append(failed, fmt.Errorf("device %s: %w", n.entry().Name, err))
		}
		n.openMu.Unlock()
	}
	return errors.Join(failed...)
}

// StatFs implements fuse.RawFileSystem.
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	total, available := f.devices.Free()
	size := int64(f.devices.BlockSize())
	free := uint64(max(available, 0) / size)
	*out = fuse.StatfsOut{
		Blocks: uint64(total / size), Bfree: free, Bavail: free,
		Bsize: uint32(size), Frsize: uint32(size), NameLen: nameMax,
	}
	return fuse.OK
}

// status is the errno that the caller of a FUSE operation sees.
func status(err error) fuse.Status {
	var errno syscall.Errno
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, context.Canceled):
		return fuse.EINTR
	case errs.Of(err) == errs.NotFound:
		return fuse.ENOENT
	case !errors.As(err, &errno) && errs.Of(err) == errs.Busy:
		return fuse.EBUSY
	case !errors.As(err, &errno) && errs.Of(err) == errs.NoSpace:
		return fuse.Status(syscall.ENOSPC)
	}
	return fuse.Status(errs.Errno(err))
}
