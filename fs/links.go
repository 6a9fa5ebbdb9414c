package fs

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/records"
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
	branch *branches.Branch // the upper that it belongs to. Changes only with the branches.
	fd     int              // O_PATH descriptor. Immutable.
	some   atomic.Bool      // the index may have entries
	marked atomic.Bool      // the upper carries records.LinksAttr
}

func openLinks(b *branches.Branch) (*linkIndex, error) {
	l := &linkIndex{branch: b}
	_, err := sys.GetXattrInto(b.Root, "", l.ns()+records.LinksAttr, nil)
	l.marked.Store(err == nil)
	err = sys.Mkdir(b.Work.Keep, records.LinksDir, 0700)
	lost := err == nil && l.marked.Load()
	if err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("making the link index: %w", err)
	}
	if l.fd, err = sys.OpenDir(b.Work.Keep, records.LinksDir); err != nil {
		return nil, fmt.Errorf("opening the link index: %w", err)
	}
	if lost {
		if err := l.rebuild(b.Root, "."); err != nil {
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

// ns is the namespace of the attributes that the records are.
func (l *linkIndex) ns() string { return string(l.branch.Format.NS) }

// linksKnown reports whether any copy of a file with several names is known.
func (f *FS) linksKnown() bool {
	for _, l := range f.indexes {
		if l.some.Load() {
			return true
		}
	}
	return false
}

// openListed opens the directory name in dirfd and lists it; the caller closes it.
func openListed(dirfd int, name string) (fd int, entries []sys.Dirent, err error) {
	fd, err = sys.OpenIn(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, nil, err
	}
	if entries, err = sys.ReadDir(fd); err != nil {
		sys.Close(fd)
		return -1, nil, err
	}
	return fd, entries, nil
}

// rebuild enters every file below name in dirfd that carries a link record.
func (l *linkIndex) rebuild(dirfd int, name string) error {
	fd, entries, err := openListed(dirfd, name)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	for _, e := range entries {
		switch {
		case e.Type == unix.DT_DIR:
			err = l.rebuild(fd, e.Name)
		case e.Type != unix.DT_CHR:
			if r, ok := l.record(location{fd, e.Name, noRelease}); ok {
				err = sys.Link(fd, e.Name, l.fd, r.Key)
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
	err := sys.SetXattr(l.branch.Root, "", l.ns()+records.LinksAttr, []byte("y"), 0)
	l.marked.Store(err == nil)
	return err
}

func (l *linkIndex) close() { sys.Close(l.fd) }

// linkKey names a lower inode for the index: by its file handle, which
// survives reboots and other branch orders, else by its identity.
func linkKey(at location, identity uint64) (string, error) {
	h, err := sys.Handle(at.fd, at.name)
	if key := records.Key(h); key != "" {
		return key, nil
	}
	return fmt.Sprintf("i%x", identity), err
}

// linkedUp returns the node of the copy of a file with several links that was
// copied up by another name, counted as looked up; nil if there is none.
func (f *FS) linkedUp(parent *node, name string, res *branches.Resolution, identity uint64) (*node, error) {
	if !f.linksKnown() {
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
	for _, b := range f.stack.Writable() {
		if b.Index >= res.Where.Branch.Index {
			break
		}
		n, err := f.copyIn(f.indexes[b], key, res, identity)
		if n != nil || err != nil {
			return n, err
		}
	}
	if res.Home != nil {
		return nil, nil
	}
	return f.hiddenLinks(parent, name, res, identity, key), nil
}

// copyIn is linkedUp for one index.
func (f *FS) copyIn(l *linkIndex, key string, res *branches.Resolution, identity uint64) (*node, error) {
	st, err := sys.StatAt(l.fd, key, 0)
	if err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	up := f.identity(l.branch, &st)
	n := f.table.find(up)
	if n == nil {
		fresh := &node{ino: identity, typ: st.Type(), home: l.branch}
		f.recallCount(fresh, key, location{l.fd, key, noRelease}, int32(res.Stat.Nlink))
		n = f.table.insert(fresh, up, false)
	}
	f.table.alias(n, identity)
	return n, nil
}

// indexed is what a copy is entered into the index as.
type indexed struct {
	key   string
	links int32 // of the union
	adj   int32 // of the node at that time
}

// indexCopy enters the finished copy tmp of n, whose attributes were st, into
// the index l of the branch that it goes to; nil when it has one name only. Where the file system cannot
// have an index the names of n part ways, as in every union without one.
// Preconditions: n.copyMu is held.
func (l *linkIndex) indexCopy(n *node, low location, tmp string, st *sys.Stat) (*indexed, error) {
	if st.Nlink < 2 || n.typ == unix.S_IFDIR {
		return nil, nil
	}
	key, err := linkKey(low, n.ino)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	in := &indexed{key, int32(st.Nlink) + n.adj, n.adj}
	n.mu.Unlock()
	at := location{l.branch.Work.Tmp, tmp, noRelease}
	err = l.mark()
	if err == nil {
		// Before the index can lead to it: a copy-up changes no number of links.
		err = l.saveRecord(at, n.typ, records.Link{Key: in.key, N: in.links, Absolute: true})
	}
	if err == nil {
		_ = sys.Unlink(l.fd, in.key)
		err = sys.Link(at.fd, at.name, l.fd, in.key)
	}
	if err != nil {
		return nil, unlessUnable(err)
	}
	if !takesOrigin(l.branch, n.typ) {
		err = l.setOriginLink(tmp, n.ino, in.key)
	}
	return in, err
}

// unindexCopy takes back what indexCopy has done for a copy that could not be
// put in its place: other names must not find it.
func (l *linkIndex) unindexCopy(in *indexed) {
	if in != nil {
		_ = sys.Unlink(l.fd, in.key)
		_ = sys.Unlink(l.fd, records.NoteName(in.key))
	}
}

// adoptIndexLocked completes indexCopy for a copy in its place, which has the
// given number of links on disk. Preconditions: n.mu is held.
func (f *FS) adoptIndexLocked(n *node, in *indexed, disk uint32) {
	now := n.adj
	n.link, n.adj = "", 0
	if in == nil {
		return
	}
	links := in.links + now - in.adj // names may have been deleted while the copy was made
	n.link, n.adj = in.key, links-int32(disk)
	f.thawLinkLocked(n)
	_ = sys.Unlink(f.topIndex().fd, hiddenName(in.key))
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
	links := f.index(n)
	st, err := sys.StatAt(links.fd, n.link, 0)
	if err != nil || int64(st.Nlink)+int64(n.adj) > 0 {
		return
	}
	if f.pinLocked(n) != nil {
		n.home.Work.Distrust() // the next mount finds that no name leads to it
		return
	}
	links.remove(n.link)
	n.link = ""
}

// remove takes a copy that no name leads to out of the index.
func (l *linkIndex) remove(key string) {
	_ = sys.Unlink(l.branch.Root, whiteout.LinkDir+"/"+key)
	_ = sys.Unlink(l.fd, key)
	_ = sys.Unlink(l.fd, records.NoteName(key))
}

// keepOrphanLocked keeps the file of n in the upper though its last name
// there is about to go, because names in lowers remain.
// Preconditions: n.mu is held.
func (f *FS) keepOrphanLocked(n *node) error {
	links, root := f.index(n), n.home.Root
	st, err := sys.StatAt(links.fd, n.link, 0)
	if err != nil || int64(st.Nlink)+int64(n.adj) <= 1 {
		return err // that name is the last of all
	}
	err = sys.KeepTimes(root, func() error { return sys.Mkdir(root, whiteout.LinkDir, 0700) })
	if err != nil && err != unix.EEXIST {
		return err
	}
	err = f.linkUnseenLocked(n, func() error {
		return sys.Link(links.fd, n.link, root, whiteout.LinkDir+"/"+n.link)
	})
	if err == unix.EEXIST {
		return nil
	}
	return err
}

// materializeLocked gives n's alias (dir, name) in a lower a real name in its
// home. Preconditions: dir.dir.mu is held for writing, dir has a part there,
// n.mu is held.
func (f *FS) materializeLocked(n *node, dir *node, name string) error {
	at, err := f.locateLocked(n)
	if err != nil {
		return err
	}
	defer at.release()
	to, err := acquire(dir.dir.tree, dir.dir.tree.Part(n.home), name)
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
					n.names[i].in = n.home
				}
			}
			return nil
		})
	})
}
