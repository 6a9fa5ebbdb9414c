package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

// OpenDir implements fuse.RawFileSystem. ENOSYS has the kernel open directories
// without asking from now on.
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !f.opts.Opens {
		return fuse.ENOSYS
	}
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	if err := f.copyUpOnOpen(n); err != nil {
		return status(err)
	}
	n.mu.Lock()
	n.opens++
	n.mu.Unlock()
	if f.opts.Timeout > 0 && (!f.opts.Outside || f.watcher != nil) {
		out.OpenFlags |= fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) {
	if n := f.table.get(in.NodeId); n != nil {
		f.closed(n, 0)
	}
}

// FsyncDir implements fuse.RawFileSystem.
func (f *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	if f.opts.Sync == SyncVolatile {
		return fuse.OK
	}
	for _, b := range f.stack.Writable() {
		if p := n.dir.tree.Part(b); p != nil {
			if err := syncPart(n.dir.tree, p); err != nil {
				return status(err)
			}
		}
	}
	return fuse.OK
}

func syncPart(d *branches.Dir, p *branches.Part) error {
	at, err := acquire(d, p, "")
	if err != nil {
		return err
	}
	defer at.release()
	return sys.SyncDir(at.fd)
}

// ReadDir implements fuse.RawFileSystem.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, func(n *node, e *branches.Entry, off uint64, _ *answers) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: e.Name, Mode: uint32(e.Type) << 12, Ino: f.listedIno(n, e), Off: off})
	}, out.AddDirEntry)
}

// ReadDirPlus implements fuse.RawFileSystem: every entry comes with what a
// lookup would have told.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, func(n *node, e *branches.Entry, off uint64, known *answers) bool {
		return f.addPlus(n, e, off, known, out)
	}, func(e fuse.DirEntry) bool { return out.AddDirLookupEntry(e) != nil })
}

// readDir feeds the entries after in.Offset to add until it is full. plain
// adds "." and "..", which the kernel never looks up.
func (f *FS) readDir(in *fuse.ReadIn, add func(*node, *branches.Entry, uint64, *answers) bool, plain func(fuse.DirEntry) bool) fuse.Status {
	n, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	if !n.isDir() {
		return fuse.ENOTDIR
	}
	n.dir.mu.RLock()
	defer n.dir.mu.RUnlock()
	known := f.ahead.take(n.dir.tree, n.dir.tree.Parts())
	if in.Offset == 0 {
		known = f.ahead.walks(n, known)
	}
	defer f.ahead.giveBack(n.dir.tree, known)
	entries, err := f.listingOf(n, in.Offset == 0, known)
	if err != nil {
		return status(err)
	}
	if in.Offset < cookieDot && !plain(fuse.DirEntry{Name: ".", Mode: unix.S_IFDIR, Ino: f.showIno(n.ino), Off: cookieDot}) {
		return fuse.OK
	}
	if in.Offset < cookieDotDot && !plain(fuse.DirEntry{Name: "..", Mode: unix.S_IFDIR, Ino: f.showIno(f.parentIno(n)), Off: cookieDotDot}) {
		return fuse.OK
	}
	rest := after(entries, in.Offset)
	for i := range rest {
		if !add(n, &rest[i].Entry, rest[i].cookie, known) {
			break
		}
	}
	return fuse.OK
}

func (f *FS) parentIno(n *node) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.names) == 0 {
		return n.ino
	}
	return n.names[0].dir.ino
}

// addPlus adds e with its attributes, which may be among what is known. An entry
// that has gone since the listing is passed over.
func (f *FS) addPlus(parent *node, e *branches.Entry, off uint64, known *answers, out *fuse.DirEntryList) bool {
	n, st, err := f.lookupKnown(parent, e.Name, known)
	if err != nil {
		return err == unix.ENOENT || out.AddDirLookupEntry(fuse.DirEntry{Name: e.Name, Mode: uint32(e.Type) << 12, Ino: e.Ino, Off: off}) != nil
	}
	entry := out.AddDirLookupEntry(fuse.DirEntry{Name: e.Name, Mode: n.typ, Ino: f.showIno(n.ino), Off: off})
	if entry == nil {
		f.table.forget(n.id, 1)
		return false
	}
	f.entry(n, &st, entry)
	return true
}

// listedIno returns the inode number that stat would show for e.
// Preconditions: parent.dir.mu is held.
func (f *FS) listedIno(parent *node, e *branches.Entry) uint64 {
	switch {
	case e.Part.Branch.Writable() && len(f.stack.Branches()) > 1:
		// A directory may be redirected, a file may have been copied up.
	case e.Type == unix.DT_DIR && e.Low != nil && !e.Low.HasMounts:
		return f.showIno(f.identityOf(e.Low, e.Low.Dev, e.Lino))
	case e.Type != unix.DT_DIR && !f.linksKnown() && !e.Part.Branch.HasMounts:
		return f.showIno(f.identityOf(e.Part.Branch, e.Part.Branch.Dev, e.Ino))
	}
	n, _, err := f.lookup(parent, e.Name)
	if err != nil {
		return e.Ino
	}
	defer f.table.forget(n.id, 1)
	return f.showIno(n.ino)
}
