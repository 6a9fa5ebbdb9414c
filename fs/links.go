package fs

import (
	"encoding/hex"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// linkIndex keeps the names of one lower inode together when it is copied up
// by one of them (overlayfs's index=on, AUFS's pseudo-links without a flush).
//
// WORKDIR/layerfs/links holds, for every lower inode with several links that
// was copied up, a link to its copy, called by the lower inode's persistent
// handle. A lookup of another lower name of that inode finds the copy there.
// The copy carries its key and the difference between its links on disk and
// in the union. The root of an upper with such copies is marked, so that a
// lost index is built again from them at the next mount.
//
// A copy whose last name in the upper goes while names in lowers remain is
// kept in the upper under .wh..wh.plnk: a work directory may be thrown away,
// an upper may not.
type linkIndex struct {
	fd     int         // O_PATH descriptor, -1 for a read-only mount. Immutable.
	upper  int         // root of the upper. Immutable.
	ns     string      // of the attributes. Immutable.
	some   atomic.Bool // the index may have entries
	marked atomic.Bool // the upper carries linksAttr
}

const linksAttr = "layerfs.links" // on the root of an upper: some files have link records

func openLinks(f *FS) (*linkIndex, error) {
	l := &linkIndex{fd: -1, ns: string(f.format.NS)}
	if f.work == nil {
		return l, nil
	}
	l.upper = f.stack.Upper().Root
	_, err := sys.GetXattrInto(l.upper, "", l.ns+linksAttr, nil)
	l.marked.Store(err == nil)
	err = sys.Mkdir(f.work.Keep, "links", 0700)
	lost := err == nil && l.marked.Load()
	if err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("making the link index: %w", err)
	}
	if l.fd, err = sys.OpenDir(f.work.Keep, "links"); err != nil {
		return nil, fmt.Errorf("opening the link index: %w", err)
	}
	if lost {
		if err := l.rebuild(l.upper, "."); err != nil {
			return nil, fmt.Errorf("rebuilding the link index: %w", err)
		}
	}
	entries, err := sys.ReadDirAt(l.fd)
	if err != nil {
		return nil, fmt.Errorf("reading the link index: %w", err)
	}
	l.some.Store(len(entries) > 0)
	return l, nil
}

// rebuild enters every file below name in dirfd that carries a link record.
func (l *linkIndex) rebuild(dirfd int, name string) error {
	fd, err := sys.OpenIn(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	entries, err := sys.ReadDir(fd)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case e.Type == unix.DT_DIR:
			err = l.rebuild(fd, e.Name)
		case e.Type != unix.DT_CHR:
			key, _, ok := l.record(location{fd, e.Name, noRelease})
			if ok {
				err = sys.Link(fd, e.Name, l.fd, key)
			}
		}
		if err != nil && err != unix.EEXIST {
			return err
		}
	}
	return nil
}

// mark notes on the upper that it has link records.
func (l *linkIndex) mark() {
	l.some.Store(true)
	if !l.marked.Swap(true) {
		_ = sys.SetXattr(l.upper, "", l.ns+linksAttr, []byte("y"), 0)
	}
}

// record reads the link record of a file; one that makes no sense is none.
func (l *linkIndex) record(at location) (key string, adj int32, ok bool) {
	v, err := sys.GetXattr(at.fd, at.name, l.ns+linkAttr)
	if err != nil {
		return "", 0, false
	}
	if _, err := fmt.Sscanf(string(v), "%s %d", &key, &adj); err != nil || len(key) < 2 || len(key) > 201 {
		return "", 0, false
	}
	for i, c := range key {
		hexDigit := c >= '0' && c <= '9' || c >= 'a' && c <= 'f'
		if i == 0 && c != 'h' && c != 'i' || i > 0 && !hexDigit {
			return "", 0, false
		}
	}
	return key, adj, true
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
		return f.hiddenLinks(parent, name, res, identity, key), nil
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

// A lower file of which a name has been deleted, but which has never been
// copied up, shows fewer links than it has. How many fewer is kept in the
// index as a symbolic link; if that is lost, the count is too high.
func hiddenName(key string) string { return "n" + key }

// hiddenLinks returns the node of a lower file with deleted names, counted as
// looked up, or nil if there is no record of it.
func (f *FS) hiddenLinks(parent *node, name string, res *branches.Resolution, identity uint64, key string) *node {
	text, err := sys.Readlink(f.links.fd, hiddenName(key))
	if err != nil {
		return nil
	}
	n := &node{ino: identity, typ: res.Stat.Type(), low: lowFile{parent.dir.tree, res.Where, name}}
	if _, err := fmt.Sscanf(string(text), "%d", &n.adj); err != nil {
		return nil
	}
	return f.table.insert(n, identity, false)
}

// saveHiddenLocked records n.adj of a file that lies in a lower.
// Preconditions: n.mu is held.
func (f *FS) saveHiddenLocked(n *node) {
	low, err := acquire(n.low.dir, n.low.part, n.low.name)
	if err != nil {
		return
	}
	defer low.release()
	key := hiddenName(linkKey(low, n.ino))
	_ = sys.Unlink(f.links.fd, key)
	if st, err := sys.StatAt(low.fd, low.name, 0); err != nil || int64(st.Nlink)+int64(n.adj) <= 0 || st.Nlink < 2 {
		return
	}
	if sys.Symlink(fmt.Sprint(n.adj), f.links.fd, key) == nil {
		f.links.some.Store(true)
	}
}

// recallLink gives n what its file says of its links.
func (f *FS) recallLink(at location, n *node) {
	if f.links.fd < 0 || !f.links.some.Load() {
		return
	}
	key, adj, ok := f.links.record(at)
	if !ok {
		return
	}
	if _, err := sys.StatAt(f.links.fd, key, 0); err != nil {
		return
	}
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
	_ = sys.Unlink(f.links.fd, hiddenName(key))
	_ = sys.Unlink(f.links.fd, key)
	if sys.Link(f.work.Tmp, tmp, f.links.fd, key) != nil {
		return
	}
	f.links.mark()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.adj += int32(st.Nlink) - 2 // the copy has its own name and the one in the index
	n.link = key
	f.saveLinkLocked(n)
}

// unindexCopy takes back what indexCopy has done for a copy that could not be
// put in its place: other names must not find it. st is what n has in the lower.
// Preconditions: n.copyMu is held.
func (f *FS) unindexCopy(n *node, st *sys.Stat) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.upper || n.link == "" {
		return
	}
	_ = sys.Unlink(f.links.fd, n.link)
	n.adj -= int32(st.Nlink) - 2
	n.link = ""
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
	switch {
	case n.link != "":
		f.saveLinkLocked(n)
	case !n.upper:
		f.saveHiddenLocked(n)
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
	f.pinLocked(n)
	_ = sys.Unlink(f.links.fd, n.link)
	_ = sys.Unlink(f.links.upper, whiteout.LinkDir+"/"+n.link)
	n.link = ""
}

// keepOrphanLocked keeps the file of n in the upper though its last name
// there is about to go, because names in lowers remain.
// Preconditions: n.mu is held.
func (f *FS) keepOrphanLocked(n *node) error {
	st, err := sys.StatAt(f.links.fd, n.link, 0)
	if err != nil || int64(st.Nlink)+int64(n.adj) <= 1 {
		return err // that name is the last of all
	}
	if err := sys.Mkdir(f.links.upper, whiteout.LinkDir, 0700); err != nil && err != unix.EEXIST {
		return err
	}
	err = sys.Link(f.links.fd, n.link, f.links.upper, whiteout.LinkDir+"/"+n.link)
	if err == unix.EEXIST {
		return nil
	}
	if err == nil {
		f.aliasGoneLocked(n) // one more link on disk, none more in the union
	}
	return err
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
