package fs

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Inodes that take no attributes of this user (symbolic links, pipes) keep
// their origin in the work directory: a symbolic link that is called by the
// inode number in the upper and holds the number to be shown. If it is lost,
// the file has another inode number, and that is all.
func originName(upperIno uint64) string { return fmt.Sprintf("o%x", upperIno) }

// takesOrigin reports whether a file of this type in b can carry attributes.
func takesOrigin(b *branches.Branch, typ uint32) bool {
	return b.Format.NS == whiteout.Trusted || typ == unix.S_IFREG
}

// recallOrigin gives the new node of a file in a writable branch the inode
// number of the lower file that it was copied from.
func (f *FS) recallOrigin(parent *node, name string, n *node, upperIno uint64) error {
	if len(f.stack.Branches()) == 1 {
		return nil
	}
	if !takesOrigin(n.home, n.typ) {
		f.recallOriginNote(parent, name, n, upperIno)
		return nil
	}
	at, err := acquire(parent.dir.tree, parent.dir.tree.Part(n.home), name)
	if err != nil {
		return err
	}
	defer at.release()
	if ino, ok := origin(n.home, at); ok {
		n.ino = ino
		f.recallLink(at, n)
	}
	return nil
}

// recallOriginNote is recallOrigin for a file that takes no attributes.
func (f *FS) recallOriginNote(parent *node, name string, n *node, upperIno uint64) {
	links := f.index(n)
	text, err := sys.Readlink(links.fd, originName(upperIno))
	if err != nil {
		return
	}
	key := ""
	_, _ = fmt.Sscanf(string(text), "%x %s", &n.ino, &key)
	if _, err := sys.StatAt(links.fd, key, 0); key == "" || err != nil {
		return
	}
	if at, err := acquire(parent.dir.tree, parent.dir.tree.Part(n.home), name); err == nil {
		f.recallCount(n, key, at, 0)
		at.release()
	}
}

// setOriginLink is setOrigin for the copy tmp, which takes no attributes and
// is in the link index under key.
func (l *linkIndex) setOriginLink(tmp string, ino uint64, key string) error {
	st, err := sys.StatAt(l.branch.Work.Tmp, tmp, 0)
	if err != nil {
		return err
	}
	return l.putNote(originName(st.Ino), fmt.Sprintf("%x %s", ino, key))
}

// origin reads the inode number that the file at, in b, has inherited.
func origin(b *branches.Branch, at location) (uint64, bool) {
	var buf [8]byte
	got, err := sys.GetXattrInto(at.fd, at.name, string(b.Format.NS)+records.OriginAttr, buf[:])
	if err != nil || got != len(buf) {
		return 0, false
	}
	return binary.BigEndian.Uint64(buf[:]), true
}

// setOrigin records that the copy tmp, of type typ, comes from the file that is
// shown as ino.
func (l *linkIndex) setOrigin(tmp string, typ uint32, ino uint64) error {
	dirfd := l.branch.Work.Tmp
	if takesOrigin(l.branch, typ) {
		var buf [8]byte
		binary.BigEndian.PutUint64(buf[:], ino)
		return unlessUnable(sys.SetXattr(dirfd, tmp, l.ns()+records.OriginAttr, buf[:], 0))
	}
	st, err := sys.StatAt(dirfd, tmp, 0)
	if err != nil {
		return err
	}
	return l.putNote(originName(st.Ino), fmt.Sprintf("%x", ino))
}

// dropOrigin forgets the origin of an inode of the upper that is no more.
func (l *linkIndex) dropOrigin(upperIno uint64) { _ = sys.Unlink(l.fd, originName(upperIno)) }
