package fusefile

import (
	"cmp"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirHandle is one open directory. It keeps the list that it began with until
// it is rewound.
type dirHandle struct {
	mu      sync.Mutex
	entries []Entry // sorted by name; protected by mu
	listed  bool    // protected by mu
}

// OpenDir implements fuse.RawFileSystem.
func (f *FS) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next++
	out.Fh = f.next
	f.dirs[out.Fh] = &dirHandle{}
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.dirs, in.Fh)
}

// FsyncDir implements fuse.RawFileSystem: the directory is the pool's business.
func (f *FS) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// ReadDir implements fuse.RawFileSystem.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, out.AddDirEntry, func(e Entry, d fuse.DirEntry) bool { return out.AddDirEntry(d) })
}

// ReadDirPlus implements fuse.RawFileSystem.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in,
		func(d fuse.DirEntry) bool { return out.AddDirLookupEntry(d) != nil },
		func(e Entry, d fuse.DirEntry) bool {
			entry := out.AddDirLookupEntry(d)
			if entry == nil {
				return false
			}
			f.fillEntry(f.remember(e), entry)
			return true
		})
}

// readDir feeds the entries after in.Offset to add until it is full, and to
// plain those of the directory itself and its parent, which are not looked up.
func (f *FS) readDir(in *fuse.ReadIn, plain func(fuse.DirEntry) bool, add func(Entry, fuse.DirEntry) bool) fuse.Status {
	f.mu.Lock()
	h := f.dirs[in.Fh]
	f.mu.Unlock()
	if h == nil {
		return fuse.EBADF
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if in.Offset == 0 || !h.listed {
		if err := h.listLocked(f.devices); err != nil {
			return status(err)
		}
	}
	for i, more := in.Offset, true; more && i < uint64(len(h.entries)+2); i++ {
		switch i {
		case 0:
			more = plain(fuse.DirEntry{Name: ".", Mode: unix.S_IFDIR, Ino: rootID, Off: i + 1})
		case 1:
			more = plain(fuse.DirEntry{Name: "..", Mode: unix.S_IFDIR, Off: i + 1})
		default:
			e := h.entries[i-2]
			more = add(e, fuse.DirEntry{Name: e.Name, Mode: unix.S_IFREG, Ino: nodeID(e), Off: i + 1})
		}
	}
	return fuse.OK
}

// listLocked lists the devices anew. Preconditions: h.mu is held.
func (h *dirHandle) listLocked(devices Devices) error {
	entries, err := devices.List()
	if err != nil {
		return err
	}
	h.entries, h.listed = slices.Clone(entries), true
	slices.SortFunc(h.entries, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}
