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
// The copy carries its key and how many links it shows (linkcount.go). The
// root of an upper with such copies is marked, so that a lost index is built
// again from them at the next mount.
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
			if r, ok := l.record(location{fd, e.Name, noRelease}); ok {
				err = sys.Link(fd, e.Name, l.fd, r.key)
			}
		}
		if err != nil && err != unix.EEXIST {
			return err
		}
	}
	return nil
}

// mark notes on the upper that it has link records.
func (l *linkIndex) mark() error {
	l.some.Store(true)
	if l.marked.Load() {
		return nil
	}
	err := sys.SetXattr(l.upper, "", l.ns+linksAttr, []byte("y"), 0)
	l.marked.Store(err == nil)
	return err
}

func (l *linkIndex) close() {
	if l.fd >= 0 {
		sys.Close(l.fd)
	}
}

// linkKey names a lower inode for the index: by its file handle, which
// survives reboots and other branch orders, else by its identity.
func linkKey(at location, identity uint64) (string, error) {
	h, err := sys.Handle(at.fd, at.name)
	if h != nil && len(h) <= 100 {
		return "h" + hex.EncodeToString(h), nil
	}
	return fmt.Sprintf("i%x", identity), err
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
	key, err := linkKey(low, identity)
	low.release()
	if err != nil {
		return nil, err
	}
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
		f.recallCount(fresh, key, location{f.links.fd, key, noRelease}, int32(res.Stat.Nlink))
		n = f.table.insert(fresh, up, false)
	}
	f.table.alias(n, identity)
	return n, nil
}

// indexed is what a copy is entered into the index as.
type indexed struct {
	key   string
	links int32 // of the union
}

// indexCopy enters the finished copy tmp of n, whose lower attributes are st,
// into the index; nil when it has one name only. Where the file system cannot
// have an index the names of n part ways, as in every union without one.
// Preconditions: n.copyMu is held.
func (f *FS) indexCopy(n *node, low location, tmp string, st *sys.Stat) (*indexed, error) {
	if st.Nlink < 2 || n.typ == unix.S_IFDIR {
		return nil, nil
	}
	key, err := linkKey(low, n.ino)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	in := &indexed{key, int32(st.Nlink) + n.adj}
	n.mu.Unlock()
	err = f.links.mark()
	if err == nil {
		// Before the index can lead to it: a copy-up changes no number of links.
		err = f.saveRecord(location{f.work.Tmp, tmp, noRelease}, n.typ, linkRecord{in.key, in.links, true})
	}
	if err == nil {
		_ = sys.Unlink(f.links.fd, in.key)
		err = sys.Link(f.work.Tmp, tmp, f.links.fd, in.key)
	}
	if err != nil {
		return nil, unlessUnable(err)
	}
	if !f.takesOrigin(n.typ) {
		err = f.setOriginLink(tmp, n.ino, in.key)
	}
	return in, err
}

// unindexCopy takes back what indexCopy has done for a copy that could not be
// put in its place: other names must not find it.
func (f *FS) unindexCopy(in *indexed) {
	if in != nil {
		_ = sys.Unlink(f.links.fd, in.key)
		_ = sys.Unlink(f.links.fd, recordName(in.key))
	}
}

// adoptIndexLocked completes indexCopy for a copy in its place, which has the
// given number of links on disk. Preconditions: n.mu is held.
func (f *FS) adoptIndexLocked(n *node, in *indexed, disk uint32) {
	if in == nil {
		return
	}
	n.link, n.adj = in.key, in.links-int32(disk)
	f.thawLinkLocked(n)
	_ = sys.Unlink(f.links.fd, hiddenName(in.key))
}

// unlessUnable returns err, or nil where it says that the file system or its
// user cannot have such a thing at all.
func unlessUnable(err error) error {
	switch err {
	case unix.EPERM, unix.EACCES, unix.EOPNOTSUPP, unix.EMLINK:
		return nil
	}
	return err
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
	if f.pinLocked(n) != nil {
		f.work.Distrust() // the next mount finds that no name leads to it
		return
	}
	f.links.remove(n.link)
	n.link = ""
}

// remove takes a copy that no name leads to out of the index.
func (l *linkIndex) remove(key string) {
	_ = sys.Unlink(l.upper, whiteout.LinkDir+"/"+key)
	_ = sys.Unlink(l.fd, key)
	_ = sys.Unlink(l.fd, recordName(key))
}

// keepOrphanLocked keeps the file of n in the upper though its last name
// there is about to go, because names in lowers remain.
// Preconditions: n.mu is held.
func (f *FS) keepOrphanLocked(n *node) error {
	st, err := sys.StatAt(f.links.fd, n.link, 0)
	if err != nil || int64(st.Nlink)+int64(n.adj) <= 1 {
		return err // that name is the last of all
	}
	err = sys.KeepTimes(f.links.upper, func() error { return sys.Mkdir(f.links.upper, whiteout.LinkDir, 0700) })
	if err != nil && err != unix.EEXIST {
		return err
	}
	err = f.linkUnseenLocked(n, func() error {
		return sys.Link(f.links.fd, n.link, f.links.upper, whiteout.LinkDir+"/"+n.link)
	})
	if err == unix.EEXIST {
		return nil
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
	return f.linkUnseenLocked(n, func() error {
		return sys.KeepTimes(to.fd, func() error {
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
			return nil
		})
	})
}
