package fs

import (
	"fmt"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
)

// How many links a file shows is not what the disk says, once names of it are
// in lowers: the copy has a link in the index and maybe one in .wh..wh.plnk,
// which nobody sees, and lower names that nobody has touched are no links of
// it. A record says how many to add (overlayfs's "U+n"). A change that makes
// or removes a link on disk which the union does not show goes between two
// records: before it one that says how many links there are, whatever the disk
// says (overlayfs's "L+n"), after it the sum anew. So a SIGKILL between any two
// system calls leaves the number right.
//
// A file that was never copied up and has lost names shows fewer links than
// the disk says; that is recorded in the index, as is what belongs to files
// that take no attributes of this user. If the index is lost, they show too many.

// record reads the link record that the file at carries.
func (l *linkIndex) record(at location) (records.Link, bool) {
	v, err := sys.GetXattr(at.fd, at.name, l.ns()+records.LinkAttr)
	if err != nil {
		return records.Link{}, false
	}
	return records.ParseLink(string(v))
}

// recordOf reads the record of the file at, whose key is key, from where it is.
func (l *linkIndex) recordOf(key string, at location) (records.Link, bool) {
	r, ok := l.record(at)
	if !ok {
		if text, err := sys.Readlink(l.fd, records.NoteName(key)); err == nil {
			r, ok = records.ParseLink(string(text))
		}
	}
	return r, ok && r.Key == key
}

// saveRecord writes the record of the file at, which is of type typ.
func (l *linkIndex) saveRecord(at location, typ uint32, r records.Link) error {
	if takesOrigin(l.branch, typ) {
		return sys.SetXattr(at.fd, at.name, l.ns()+records.LinkAttr, []byte(r.String()), 0)
	}
	return l.putNote(records.NoteName(r.Key), r.String())
}

// putNote makes text the note called name in the index, in one step.
func (l *linkIndex) putNote(name, text string) error {
	work := l.branch.Work
	tmp := work.Name()
	if err := sys.Symlink(text, work.Tmp, tmp); err != nil {
		return err
	}
	err := sys.Rename(work.Tmp, tmp, l.fd, name, 0)
	if err != nil {
		work.Discard(tmp)
	}
	return err
}

// recallLink gives n, whose file is at, what is recorded of its links.
func (f *FS) recallLink(at location, n *node) {
	links := f.index(n)
	if !links.some.Load() {
		return
	}
	r, ok := links.record(at)
	if !ok {
		return
	}
	if _, err := sys.StatAt(links.fd, r.Key, 0); err != nil {
		return
	}
	f.recallCount(n, r.Key, at, 0)
}

// recallCount gives the new node n, whose file at is in the index under key,
// its number of links. Without a record there are as many as in the lower.
func (f *FS) recallCount(n *node, key string, at location, lower int32) {
	r, ok := f.index(n).recordOf(key, at)
	if !ok {
		r = records.Link{Key: key, N: lower, Absolute: true}
	}
	n.link, n.adj = key, r.N
	if !r.Absolute {
		return
	}
	if st, err := sys.StatAt(at.fd, at.name, 0); err == nil {
		n.adj = r.N - int32(st.Nlink)
	}
	f.thawLinkLocked(n) // nobody else knows n yet
}

// freezeLinkLocked records how many links n shows, whatever the disk will say.
// Preconditions: n.mu is held, n is in the upper.
func (f *FS) freezeLinkLocked(n *node) error {
	if n.link == "" {
		return nil
	}
	links := f.index(n)
	st, err := sys.StatAt(links.fd, n.link, 0)
	if err != nil {
		return err
	}
	n.frozen = true
	return links.saveRecord(location{links.fd, n.link, noRelease}, n.typ, records.Link{Key: n.link, N: int32(st.Nlink) + n.adj, Absolute: true})
}

// thawLinkLocked records how many links n shows beyond those on disk. If that
// fails n stays frozen, and changes that both the disk and the union show are
// refused until it succeeds. Preconditions: n.mu is held.
func (f *FS) thawLinkLocked(n *node) error {
	if n.link == "" {
		return nil
	}
	links := f.index(n)
	err := links.saveRecord(location{links.fd, n.link, noRelease}, n.typ, records.Link{Key: n.link, N: n.adj, Absolute: false})
	n.frozen = err != nil
	return err
}

// ensureThawedLocked readies n for a change that disk and union both show.
// Preconditions: n.mu is held.
func (f *FS) ensureThawedLocked(n *node) error {
	if !n.frozen {
		return nil
	}
	return f.thawLinkLocked(n)
}

// linkUnseenLocked runs link, which makes a link of n on disk that the union
// does not show as one more. Preconditions: n.mu is held, n is in the upper.
func (f *FS) linkUnseenLocked(n *node, link func() error) error {
	if err := f.freezeLinkLocked(n); err != nil {
		return err
	}
	err := link()
	if err == nil {
		n.adj--
	}
	_ = f.thawLinkLocked(n)
	return err
}

// hiddenName is where the index notes how many of the names of a lower file
// that was never copied up have been deleted.
func hiddenName(key string) string { return "n" + key }

// hiddenLinks returns the node of a lower file with deleted names, counted as
// looked up, or nil if there is no record of it.
func (f *FS) hiddenLinks(parent *node, name string, res *branches.Resolution, identity uint64, key string) *node {
	text, err := sys.Readlink(f.topIndex().fd, hiddenName(key))
	if err != nil {
		return nil
	}
	n := &node{ino: identity, typ: res.Stat.Type(), low: lowFile{parent.dir.tree, res.Where, name}}
	if _, err := fmt.Sscanf(string(text), "%d", &n.adj); err != nil {
		return nil
	}
	return f.table.insert(n, identity, false)
}

// beforeCoverLocked readies n for the loss of its name in a lower, which is
// about to be covered in the branch on: a copy there gets that name first, so
// that one system call then takes it from disk and union; for a file that was
// never copied up it is noted which name is going. It reports whether the name
// is in that branch now. was is what the lower file was on disk.
// Preconditions: n.mu is held, parent.dir.mu is held for writing.
func (f *FS) beforeCoverLocked(on *branches.Branch, n, parent *node, name string, was *sys.Stat) (inUpper bool, err error) {
	if n.isDir() {
		return false, nil
	}
	if n.home != nil {
		if n.home != on {
			return false, nil
		}
		return true, f.materializeLocked(n, parent, name)
	}
	if was.Nlink < 2 {
		return false, nil
	}
	return false, f.noteHiddenLocked(n, " ?"+parent.dir.tree.Path()+"/"+name)
}

// nameHiddenLocked accounts for a name of n, which lies in a lower, that is now
// covered. Preconditions: n.mu is held.
func (f *FS) nameHiddenLocked(n *node) {
	n.adj--
	if n.home != nil {
		f.thawLinkLocked(n)
		return
	}
	// The name is gone, so this cannot fail any more: what a second try does
	// not bring about is left to the next mount.
	if f.noteHiddenLocked(n, "") != nil && f.noteHiddenLocked(n, "") != nil {
		f.stack.Upper().Work.Distrust()
	}
}

// noteHiddenLocked notes how many names of n are deleted. going is empty, or
// " ?" and the path of a name that may be deleted too: FS.recover finds out.
// Preconditions: n.mu is held.
func (f *FS) noteHiddenLocked(n *node, going string) error {
	low, err := acquire(n.low.dir, n.low.part, n.low.name)
	if err != nil {
		return err
	}
	defer low.release()
	st, err := sys.StatAt(low.fd, low.name, 0)
	if err != nil {
		return err
	}
	key, err := linkKey(low, n.ino)
	if err != nil {
		return err
	}
	if st.Nlink < 2 || int64(st.Nlink)+int64(n.adj) <= 0 {
		_ = sys.Unlink(f.topIndex().fd, hiddenName(key))
		return nil
	}
	f.topIndex().some.Store(true)
	return f.topIndex().putNote(hiddenName(key), fmt.Sprint(n.adj)+going)
}
