package fs

import (
	"errors"
	"fmt"
	"log"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

const rootID = fuse.FUSE_ROOT_ID

// Notifier tells the kernel to drop what it has cached.
type Notifier interface {
	InvalInode(node uint64, off, length int64) error // off < 0: attributes only
	InvalEntry(parent uint64, name string) error
}

// FS presents a stack of branches as one POSIX tree. It implements
// fuse.RawFileSystem.
type FS struct {
	fuse.RawFileSystem // answers ENOSYS to what is not implemented here

	opts  Options         // immutable
	stack *branches.Stack // immutable; its branches change only while the gate is shut
	gate  gate            // every request is inside

	changeMu sync.Mutex // held by who changes the branches, from the plan to the end
	euid     uint32     // whom files that the daemon makes belong to. Immutable.
	egid     uint32

	table    *table
	listings listings
	recents  recents
	ahead    ahead
	indexes  map[*branches.Branch]*linkIndex // of the writable branches; changes only while the gate is shut
	notify   atomic.Pointer[Notifier]
	kernel   atomic.Pointer[Backings] // of a mount with passthrough
	timeout  atomic.Int64             // a time.Duration: how long the kernel may keep entries and attributes
	watcher  *watcher                 // nil without udba=notify. Immutable.

	// renameMu is held by renames from one directory to another, so that the
	// ancestry of the two does not change under them (s_vfs_rename_mutex).
	renameMu sync.Mutex

	files    blockFiles // of what was copied up by blocks
	reflinks reflinks
	settler  settler
	troubles troubles

	backings    atomic.Int64 // open files in branches
	maxBackings int64        // immutable

	counters counters
	started  time.Time
}

// New returns a file system over stack, which it owns from now on.
func New(stack *branches.Stack, opts Options) (*FS, error) {
	if opts.Log == nil {
		opts.Log = log.Default()
	}
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		opts:          opts,
		stack:         stack,
		indexes:       map[*branches.Branch]*linkIndex{},
		maxBackings:   maxBackings(),
		euid:          uint32(os.Geteuid()),
		egid:          uint32(os.Getegid()),
		started:       time.Now(),
	}
	f.timeout.Store(int64(opts.Timeout))
	f.table = newTable(f.gone)
	f.ahead.fs = f
	f.files.init(opts.Pools, f.trouble)
	f.settler.upTo.Store(-1)
	if opts.Watch {
		var err error
		if f.watcher, err = newWatcher(f); err != nil {
			return nil, fmt.Errorf("watching the branches: %w", err)
		}
	}
	for _, b := range stack.Writable() {
		l, err := f.adoptUpper(b)
		if err != nil {
			return nil, err
		}
		f.indexes[b] = l
	}
	return f, f.addRoot()
}

// adoptUpper opens the link index of the writable branch b and completes what
// an earlier daemon has left undone in it.
func (f *FS) adoptUpper(b *branches.Branch) (*linkIndex, error) {
	links, err := openLinks(b)
	if err != nil {
		return nil, err
	}
	if err := f.recover(links); err != nil {
		links.close()
		return nil, err
	}
	return links, nil
}

// index returns the link index of the branch where the file n is at home.
// Preconditions: n.mu is held and n.home is not nil.
func (f *FS) index(n *node) *linkIndex { return f.indexes[n.home] }

// topIndex is the index of the topmost writable branch, which also has the
// notes about files that were never copied up; nil for a read-only mount.
func (f *FS) topIndex() *linkIndex { return f.indexes[f.stack.Upper()] }

// readOnly reports whether nothing can be changed.
func (f *FS) readOnly() bool { return f.opts.ReadOnly || f.stack.Upper() == nil }

func (f *FS) addRoot() error {
	tree := f.stack.Root()
	id := rootIdentity(tree)
	st, err := id.RootStat()
	if err != nil {
		return err
	}
	n := &node{
		id: rootID, ino: f.identity(id, &st), typ: unix.S_IFDIR, lookups: 1,
		dir: &dirNode{tree: tree},
	}
	f.table.byID[rootID] = n
	f.watcher.watch(n)
	return nil
}

// rootIdentity is the branch whose root is the identity of the merged root: the
// topmost that is only read, else the lowest.
func rootIdentity(tree *branches.Dir) *branches.Branch {
	parts := tree.Parts()
	for _, p := range parts {
		if !p.Branch.Writable() {
			return p.Branch
		}
	}
	return parts[len(parts)-1].Branch
}

// Enter and Leave implement fusedev.Gate: every request is inside while it is handled.
func (f *FS) Enter() { f.gate.Enter() }

// Leave ends what Enter has begun.
func (f *FS) Leave() { f.gate.Leave() }

// SetNotifier gives f the way to the kernel's caches.
func (f *FS) SetNotifier(n Notifier) { f.notify.Store(&n) }

// inval tells the kernel that n's attributes, or with off >= 0 also its
// pages, are out of date. With off < 0 it takes no page or inode lock in the
// kernel and may be called from a handler.
func (f *FS) inval(n *node, off int64) {
	if p := f.notify.Load(); p != nil {
		_ = (*p).InvalInode(n.id, off, 0) // nothing is cached if it fails
	}
}

// capabilities are what is negotiated beyond what go-fuse does by itself.
// Left out on purpose: ATOMIC_O_TRUNC, with which the kernel does not hold
// back pages of mappings while the daemon truncates, so that they bring the old
// content back; and ASYNC_DIO, after which it does not drop the pages that an
// asynchronous direct write has made stale. Node ids are not kept for ever, so
// file handles of this mount would go stale: there are none (NO_EXPORT_SUPPORT),
// as in an overlay without nfs_export.
const capabilities = fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_SETXATTR_EXT | fuse.CAP_NO_EXPORT_SUPPORT

// FuseOptions returns what this file system wants negotiated with the kernel.
func (f *FS) FuseOptions() *fuse.MountOptions {
	o := &fuse.MountOptions{
		Name:                     "layerfs",
		MaxWrite:                 1 << 20,
		MaxBackground:            64,
		MaxReadAhead:             1 << 20,
		EnableSymlinkCaching:     f.opts.Timeout > 0,
		ExplicitDataCacheControl: f.opts.Timeout > 0 && !f.opts.Outside,
		EnableAcl:                !f.opts.NoACL && !f.opts.NoXattrs,
		DisableXAttrs:            f.opts.NoXattrs,
		Logger:                   f.opts.Log,
		ExtraCapabilities:        capabilities,
		PanicHandler: func(p any) fuse.Status {
			f.opts.Log.Printf("panic in a handler: %v\n%s", p, debug.Stack())
			return fuse.EIO
		},
	}
	if f.opts.Passthrough {
		o.MaxStackDepth = 1
	} else {
		o.DisabledCapabilities |= fuse.CAP_PASSTHROUGH
	}
	if !f.opts.Opens {
		o.ExtraCapabilities |= fuse.CAP_NO_OPENDIR_SUPPORT
	}
	if o.EnableAcl {
		// With ACLs the umask must not be applied where a default ACL is.
		o.ExtraCapabilities |= fuse.CAP_DONT_MASK
	}
	return o
}

// String implements fuse.RawFileSystem.
func (f *FS) String() string { return "layerfs" }

// Init implements fuse.RawFileSystem.
func (f *FS) Init(*fuse.Server) {}

// Close gives everything back after the unmount and empties the work directory.
func (f *FS) Close() error {
	f.settler.stopped.Store(true)
	f.settler.running.Lock() // for good
	f.watcher.close()
	f.ahead.stop()
	f.recents.stop()
	err := f.closeFiles()
	for _, l := range f.indexes {
		l.close()
	}
	if e := f.stack.Close(); err == nil {
		err = e
	}
	return err
}

// closeFiles closes all files, of which the kernel does not say at the end that
// it forgets them, and lets go of the devices and pools of stubs.
func (f *FS) closeFiles() error {
	for _, n := range f.table.all() {
		n.mu.Lock()
		if n.back != nil {
			n.back.release()
			n.back = nil
		}
		n.mu.Unlock()
	}
	err := f.files.finish()
	whole := f.wholeBranches()
	err = errors.Join(err, f.files.close())
	for _, b := range whole { // nobody needs its private pool any more
		_ = sys.KeepTimes(b.Root, func() error { return sys.RemoveAll(b.Root, whiteout.StubDir) }) // else it stays, and does no harm
	}
	return err
}

// gone is called for a node that nobody remembers any more.
func (f *FS) gone(n *node) {
	n.mu.Lock()
	names := n.names
	n.names = nil
	back := n.back
	n.back = nil
	n.mu.Unlock()
	if back != nil {
		back.release()
	}
	if n.isDir() {
		f.watcher.forget(n)
		f.listings.forget(n)
		n.dir.mu.Lock()
		if n.dir.pin != nil {
			n.dir.tree.Release(n.dir.pin)
		}
		n.dir.mu.Unlock()
		n.dir.tree.Close()
	}
	for _, p := range names {
		f.table.addKid(p.dir, -1)
	}
}

// Forget implements fuse.RawFileSystem.
func (f *FS) Forget(id, count uint64) { f.table.forget(id, count) }

// node returns the node of a request.
func (f *FS) node(id uint64) (*node, fuse.Status) {
	n := f.table.get(id)
	if n == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	return n, fuse.OK
}
