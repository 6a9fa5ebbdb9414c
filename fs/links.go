package fs

import (
	"encoding/hex"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

// linkIndex keeps the names of one lower inode together when it is copied up
// by one of them (overlayfs's index=on, AUFS's pseudo-links without a flush).
//
// WORKDIR/layerfs/links holds, for every lower inode with several links that
// was copied up, a link to its copy, called by the lower inode's persistent
// handle. A lookup of another lower name of that inode finds the copy there.
// The copy carries its key and the difference between its links on disk and
// in the union, so that a lost index grows again as files are seen.
type linkIndex struct {
	fd   int         // O_PATH descriptor, -1 for a read-only mount. Immutable.
	some atomic.Bool // the index may have entries
}

func openLinks(f *FS) (*linkIndex, error) {
	l := &linkIndex{fd: -1}
	if f.work == nil {
		return l, nil
	}
	if err := sys.Mkdir(f.work.Keep, "links", 0700); err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("making the link index: %w", err)
	}
	fd, err := sys.OpenDir(f.work.Keep, "links")
	if err != nil {
		return nil, fmt.Errorf("opening the link index: %w", err)
	}
	entries, err := sys.ReadDirAt(fd)
	if err != nil {
		sys.Close(fd)
		return nil, fmt.Errorf("reading the link index: %w", err)
	}
	l.fd = fd
	l.some.Store(len(entries) > 0)
	return l, nil
}

func (l *linkIndex) close() {
	if l.fd >= 0 {
		sys.Close(l.fd)
	}
}

// linkKey names a lower inode for the index: by its file handle, which
// survives reboots and other branch orders, else by its identity.
func linkKey(at location, identity uint64) string {
	if h := sys.Handle(at.fd, at.name); h != nil && len(h) <= 100 {
		return "h" + hex.EncodeToString(h)
	}
	return fmt.Sprintf("i%x", identity)
}

// linkedUp returns the node of the copy of a lower file with several links
// that was copied up by another name, counted as looked up; nil if there is none.
func (f *FS) linkedUp(parent *node, name string, res *branches.Resolution, identity uint64) (*node, error) {
	if f.links.fd < 0 || !f.links.some.Load() {
		return nil, nil
	}
	low, err := acquire(parent.dir.tree, res.Where, name)
	if err != nil {
		return nil, err
	}
	key := linkKey(low, identity)
	low.release()
	st, err := sys.StatAt(f.links.fd, key, 0)
	if err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	up := f.identity(f.stack.Upper(), &st)
	n := f.table.find(up)
	if n == nil {
		fresh := &node{ino: identity, typ: st.Type(), upper: true}
		f.recallLink(location{f.links.fd, key, noRelease}, fresh)
		n = f.table.insert(fresh, up, false)
	}
	f.table.alias(n, identity)
	return n, nil
}

// recallLink reads what a copied-up file says of its links, and puts it back
// into the index if it is missing there.
func (f *FS) recallLink(at location, n *node) {
	v, err := sys.GetXattr(at.fd, at.name, string(f.format.NS)+linkAttr)
	if err != nil {
		return
	}
	var key string
	var adj int32
	if _, err := fmt.Sscanf(string(v), "%s %d", &key, &adj); err != nil || len(key) > 201 || key[0] != 'h' && key[0] != 'i' {
		return
	}
	if _, err := hex.DecodeString(key[1:]); key[0] == 'h' && err != nil {
		return
	}
	if f.links.fd < 0 {
		return
	}
	if at.fd != f.links.fd {
		if _, err := sys.StatAt(f.links.fd, key, 0); err == unix.ENOENT && sys.Link(at.fd, at.name, f.links.fd, key) != nil {
			return
		}
	}
	f.links.some.Store(true)
	n.link, n.adj = key, adj
}

// indexCopy enters the finished copy tmp of n, whose lower attributes are st,
// into the index. Where that is impossible the names of n part ways, as they
// do in every union without an index.
// Preconditions: n.copyMu is held.
func (f *FS) indexCopy(n *node, low location, tmp string, st *sys.Stat) {
	if st.Nlink < 2 || n.typ == unix.S_IFDIR {
		return
	}
	key := linkKey(low, n.ino)
	_ = sys.Unlink(f.links.fd, key)
	if sys.Link(f.work.Tmp, tmp, f.links.fd, key) != nil {
		return
	}
	f.links.some.Store(true)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.adj += int32(st.Nlink) - 2 // the copy has its own name and the one in the index
	n.link = key
	f.saveLinkLocked(n)
}

// saveLinkLocked writes n's link record. Preconditions: n.mu is held.
func (f *FS) saveLinkLocked(n *node) {
	value := fmt.Sprintf("%s %d", n.link, n.adj)
	_ = sys.SetXattr(f.links.fd, n.link, string(f.format.NS)+linkAttr, []byte(value), 0)
}

// aliasGoneLocked accounts for a name of n in a lower that is now covered.
// Preconditions: n.mu is held.
func (f *FS) aliasGoneLocked(n *node) {
	n.adj--
	if n.link != "" {
		f.saveLinkLocked(n)
	}
}

// dropIndexLocked takes n out of the index when its last name in the union
// has gone. Preconditions: n.mu is held.
func (f *FS) dropIndexLocked(n *node) {
	if n.link == "" {
		return
	}
	st, err := sys.StatAt(f.links.fd, n.link, 0)
	if err != nil || int64(st.Nlink)+int64(n.adj) > 0 {
		return
	}
	if n.opens > 0 {
		f.pinLocked(n)
	}
	_ = sys.Unlink(f.links.fd, n.link)
	n.link = ""
}

// materializeLocked gives n's alias (dir, name) in a lower a real name in
// the upper. Preconditions: dir.dir.mu is held for writing, dir and n are in
// the upper, n.mu is held.
func (f *FS) materializeLocked(n *node, dir *node, name string) error {
	at, err := f.locateLocked(n)
	if err != nil {
		return err
	}
	defer at.release()
	to, err := acquire(dir.dir.tree, dir.dir.tree.Upper(), name)
	if err != nil {
		return err
	}
	defer to.release()
	return f.keepTimes(to.fd, func() error {
		if at.name == "" {
			err = sys.LinkFd(at.fd, to.fd, name)
		} else {
			err = sys.Link(at.fd, at.name, to.fd, name)
		}
		if err != nil {
			return err
		}
		for i, p := range n.names {
			if p.dir == dir && p.name == name {
				n.names[i].upper = true
			}
		}
		f.aliasGoneLocked(n)
		return nil
	})
}
