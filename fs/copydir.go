package fs

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

// copyUpDir makes the directory n in a writable branch, above or below where it
// is. Its content stays where it is.
// Preconditions: n.copyMu is held and n is not where it is to go.
func (f *FS) copyUpDir(n *node, o copyOptions) error {
	to, parent, err := f.copyTarget(n, o.to)
	switch {
	case err != nil:
		return err
	case parent == nil && n.id == rootID: // hidden in that branch by an opaque root above
		return unix.EROFS
	case parent == nil: // removed, and somebody is still in it
		return unix.ENOENT
	}
	if err := f.copyUpTo(parent, to); err != nil {
		return err
	}
	cp := &copied{to: to, tmp: to.Work.Name()}
	was, err := f.copyDirBody(n, cp)
	if err == nil && was.Sealed() && !o.sealed {
		err = unix.EPERM
	}
	if err == nil {
		err = f.placeDir(n, parent, cp)
	}
	if err != nil {
		if n.dir.tree.Part(to) == nil {
			to.Work.Discard(cp.tmp)
		}
		if err == errMoved {
			return f.copyUpDir(n, o)
		}
		return err
	}
	to.CopyUps.Add(1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if st, err := f.statLocked(n); err != nil || st.UID != was.UID || st.GID != was.GID || st.Mode != was.Mode {
		f.inval(n, -1)
	}
	return nil
}

// errMoved: a directory was renamed in another branch while it was copied.
var errMoved = errors.New("renamed meanwhile")

// placeDir moves the finished copy of the directory n to its place in parent,
// unless it is no longer there.
func (f *FS) placeDir(n, parent *node, cp *copied) error {
	parent.dir.mu.Lock()
	defer parent.dir.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case len(n.names) == 0:
		return unix.ENOENT
	case n.names[0].dir != parent:
		return errMoved
	}
	name := n.names[0].name
	to, err := acquire(parent.dir.tree, parent.dir.tree.Part(cp.to), name)
	if err != nil {
		return err
	}
	defer to.release()
	tmp := cp.at()
	return sys.KeepTimes(to.fd, func() error {
		if err := sys.Rename(tmp.fd, tmp.name, to.fd, name, sys.RenameNoReplace); err != nil {
			return err
		}
		n.dir.tree.Add(cp.to)
		f.rekeyLocked(n, cp.to, to.fd)
		f.watcher.watch(n)
		return f.syncPlace(to.fd)
	})
}

// rekeyLocked brings up to date what the directory n is known by, after it got a
// part in b, whose parent is dirfd: lookups go by the lowest part where no
// branch that is only read has one (Resolution.Origin). Preconditions: n.mu is held.
func (f *FS) rekeyLocked(n *node, b *branches.Branch, dirfd int) {
	parts := n.dir.tree.Parts()
	if len(parts) == 1 || parts[len(parts)-1].Branch != b {
		return
	}
	for _, p := range parts {
		if !p.Branch.Writable() {
			return
		}
	}
	if st, err := sys.StatAt(dirfd, n.names[0].name, 0); err == nil {
		f.table.rekey(n, f.identity(b, &st))
	}
}

// copyDirBody makes the copy of directory n under its temporary name and
// returns the attributes that n has had so far.
func (f *FS) copyDirBody(n *node, cp *copied) (sys.Stat, error) {
	to := cp.at()
	if err := sys.Mkdir(to.fd, to.name, 0700); err != nil {
		return sys.Stat{}, err
	}
	n.mu.Lock()
	st, err := f.statLocked(n)
	n.mu.Unlock()
	if err != nil {
		return st, err
	}
	if n.fixed != nil {
		return st, f.copyAttributes(to, cp.to, to, cp.to, &st, nil)
	}
	from, err := f.topOf(n.dir.tree)
	if err != nil {
		return st, err
	}
	defer from.release()
	return st, f.copyAttributes(from, n.dir.tree.Parts()[0].Branch, to, cp.to, &st, nil)
}

func (f *FS) topOf(d *branches.Dir) (location, error) {
	return acquire(d, d.Parts()[0], "")
}
