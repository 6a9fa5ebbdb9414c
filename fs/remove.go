package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Unlink implements fuse.RawFileSystem.
func (f *FS) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return status(f.remove(in.NodeId, name, false))
}

// Rmdir implements fuse.RawFileSystem.
func (f *FS) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return status(f.remove(in.NodeId, name, true))
}

func (f *FS) remove(parentID uint64, name string, dir bool) error {
	if f.readOnly() {
		return unix.EROFS
	}
	parent, code := f.node(parentID)
	if !code.Ok() {
		return unix.Errno(code)
	}
	if whiteout.Reserved(name) {
		return unix.ENOENT
	}
	if parent.dir.lost {
		return unix.ESTALE // as in find
	}
	on, err := f.branchToRemove(parent, name)
	for again := true; err == nil && again; {
		if err = f.copyUpTo(parent, on); err == nil {
			on, again, err = f.removeIn(on, parent, name, dir)
		}
	}
	return err
}

// branchToRemove returns the writable branch in which name is to be removed.
func (f *FS) branchToRemove(parent *node, name string) (*branches.Branch, error) {
	if !f.stack.Several() {
		return f.stack.Upper(), nil
	}
	parent.dir.mu.RLock()
	defer parent.dir.mu.RUnlock()
	res, err := f.find(parent, name)
	if err != nil {
		return nil, err
	}
	n, err := f.nodeOf(parent, name, &res)
	if err != nil {
		return nil, err
	}
	defer f.table.forget(n.id, 1)
	return f.removalOf(parent, n, &res)
}

// removalOf is branchToRemove for what a lookup has found: where it lies if it
// can be changed there, else where its copy would go.
// Preconditions: parent.dir.mu is held.
func (f *FS) removalOf(parent, n *node, res *branches.Resolution) (*branches.Branch, error) {
	on := res.Home
	if !f.stack.Several() {
		on = f.stack.Upper()
	}
	if home := n.changeable(); on == nil && !n.isDir() && home != nil && home.Index <= f.stack.Lowest(parent.dir.tree, res.Where.Branch) {
		on = home // another name of a copied-up file
	}
	if on == nil {
		on = f.stack.ForCopyUp(parent.dir.tree, res.Where.Branch.Index)
	}
	if on == nil {
		return nil, unix.EROFS
	}
	return on, nil
}

// removeIn removes name in the writable branch on, where parent exists; again
// means that it has to be done in the branch that is returned.
func (f *FS) removeIn(on *branches.Branch, parent *node, name string, dir bool) (in *branches.Branch, again bool, err error) {
	d := parent.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	res, err := f.find(parent, name)
	if err != nil {
		return nil, false, err
	}
	if dir != (res.Kind == branches.Directory) {
		if dir {
			return nil, false, unix.ENOTDIR
		}
		return nil, false, unix.EISDIR
	}
	n, err := f.nodeOf(parent, name, &res)
	if err != nil {
		return nil, false, err
	}
	defer f.table.forget(n.id, 1)
	if in, err = f.removalOf(parent, n, &res); err != nil || in != on {
		return in, err == nil, err
	}
	return in, false, f.removeFound(on, parent, name, n, &res)
}

// removeFound removes n, which was found at name in parent.
// Preconditions: parent.dir.mu is held for writing.
func (f *FS) removeFound(on *branches.Branch, parent *node, name string, n *node, res *branches.Resolution) (err error) {
	if n.isDir() {
		n.dir.mu.Lock()
		defer n.dir.mu.Unlock()
		if empty, err := f.stack.Empty(n.dir.tree); err != nil || !empty {
			return f.orNotEmpty(err, parent, n)
		}
		n.dir.pinLocked()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if res.Stat.Sealed() { // in the upper the system call would refuse by itself
		return unix.EPERM
	}
	inUpper := res.Home == on
	if !inUpper {
		if inUpper, err = f.beforeCoverLocked(on, n, parent, name, &res.Stat); err != nil {
			return err
		}
	}
	if err := f.takeOutLocked(on, parent, name, n, inUpper); err != nil {
		return err
	}
	parent.dir.changed()
	f.touch(parent.dir.tree, on)
	f.unnamedLocked(n, parent, name, &res.Stat)
	return nil
}

// orNotEmpty is why the directory n in parent cannot be removed: err or that
// it is not empty, unless it could not be removed if it were (may_delete).
func (f *FS) orNotEmpty(err error, parent, n *node) error {
	if err != nil {
		return err
	}
	for _, d := range []*node{parent, n} {
		d.mu.Lock()
		st, err := f.statLocked(d)
		d.mu.Unlock()
		if err == nil && st.Sealed() {
			return unix.EPERM
		}
	}
	return unix.ENOTEMPTY
}

// takeOutLocked removes name from the merged directory parent in the branch on;
// inUpper says that it is there.
// Preconditions: parent has a part there and parent.dir.mu is held for
// writing; n.mu, and of a directory n.dir.mu, is held.
func (f *FS) takeOutLocked(on *branches.Branch, parent *node, name string, n *node, inUpper bool) error {
	tree := parent.dir.tree
	covers := !inUpper
	if inUpper && len(tree.Below(on)) > 0 {
		var err error
		if covers, err = f.stack.LowerHas(tree, name, on); err != nil {
			return err
		}
	}
	to, err := acquire(tree, tree.Part(on), name)
	if err != nil {
		return err
	}
	defer to.release()
	if inUpper && f.lastUpperLocked(n) {
		if err := f.beforeLastLocked(n); err != nil {
			return err
		}
	}
	if err := f.ensureThawedLocked(n); err != nil {
		return err
	}
	if covers {
		return whiteOut(on, tree, to, n.isDir(), inUpper)
	}
	if n.isDir() {
		return dropDir(on, to)
	}
	return sys.Unlink(to.fd, to.name)
}

// beforeLastLocked readies n for the loss of its last known name in the
// upper. Somebody may have the file open, or be about to open it, having
// looked its name up just before: it stays reachable until the kernel forgets it.
// Preconditions: n.mu is held.
func (f *FS) beforeLastLocked(n *node) error {
	if n.link != "" {
		return f.keepOrphanLocked(n)
	}
	if err := f.pinLocked(n); err != nil {
		return err
	}
	if n.back != nil && n.back.stub != nil {
		n.back.markUnlinking()
	}
	return nil
}

// lastUpperLocked reports whether n has one known name in the upper.
func (f *FS) lastUpperLocked(n *node) bool {
	count := 0
	for _, p := range n.names {
		if p.in != nil {
			count++
		}
	}
	return count <= 1
}

// whiteOut puts a whiteout over name at in b's part of tree, and takes away
// what b has there. The whiteout is there before, or at the same instant.
func whiteOut(b *branches.Branch, tree *branches.Dir, at location, isDir, inUpper bool) error {
	if err := tree.PrepareWhiteout(b, at.fd); err != nil {
		return err
	}
	if !b.Format.InPlace() {
		if err := b.Work.LinkWhiteout(b.Format, at.fd, whiteout.Prefix+at.name); err != nil && err != unix.EEXIST {
			return err
		}
		if !inUpper {
			return nil
		}
		if isDir {
			return dropDir(b, at)
		}
		return sys.Unlink(at.fd, at.name)
	}
	if !inUpper {
		return b.Work.LinkWhiteout(b.Format, at.fd, at.name)
	}
	return replaceByWhiteout(b, at, isDir)
}

// replaceByWhiteout changes the entry at, in b, for a whiteout in one step.
func replaceByWhiteout(b *branches.Branch, at location, isDir bool) error {
	tmp, err := b.Work.Whiteout(b.Format)
	if err != nil {
		return err
	}
	if !isDir {
		if err = sys.Rename(b.Work.Tmp, tmp, at.fd, at.name, 0); err != nil {
			b.Work.Discard(tmp)
		}
		return err
	}
	if err := sys.Rename(b.Work.Tmp, tmp, at.fd, at.name, sys.RenameExchange); err != nil {
		b.Work.Discard(tmp)
		return err
	}
	b.Work.Discard(tmp) // the directory, with the whiteouts in it
	return nil
}

// dropDir removes a directory of b that shows nothing, though it may hold
// whiteouts.
func dropDir(b *branches.Branch, at location) error {
	err := sys.Rmdir(at.fd, at.name)
	if err != unix.ENOTEMPTY && err != unix.EEXIST {
		return err
	}
	tmp := b.Work.Name()
	if err := sys.Rename(at.fd, at.name, b.Work.Tmp, tmp, sys.RenameNoReplace); err != nil {
		return err
	}
	b.Work.Discard(tmp)
	return nil
}

// unnamedLocked brings n up to date after the loss of a name; was is
// what its file was on disk before.
// Preconditions: n.mu is held, parent.dir.mu is held for writing.
func (f *FS) unnamedLocked(n *node, parent *node, name string, was *sys.Stat) {
	p, known := f.removePlaceLocked(n, parent, name)
	if n.isDir() {
		n.dir.dead = true
		f.forgetKeys(n)
		return
	}
	if known && p.in == nil && was.Nlink > 1 {
		f.nameHiddenLocked(n)
	}
	f.dropIndexLocked(n)
	if n.home != nil && n.link == "" && was.Nlink <= 1 {
		f.forgetKeys(n)
		if !takesOrigin(n.home, n.typ) {
			f.index(n).dropOrigin(was.Ino)
		}
	}
}

// forgetKeys makes the table forget what n was on disk: its inode number may
// come again.
func (f *FS) forgetKeys(n *node) {
	f.table.mu.Lock()
	defer f.table.mu.Unlock()
	for _, k := range n.keys {
		if k != 0 {
			f.table.dropKeyLocked(n, k)
		}
	}
}
