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
	if f.opts.ReadOnly {
		return unix.EROFS
	}
	parent, code := f.node(parentID)
	if !code.Ok() {
		return unix.Errno(code)
	}
	if whiteout.Reserved(name) {
		return unix.ENOENT
	}
	if err := f.copyUp(parent); err != nil {
		return err
	}
	d := parent.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	res, err := f.find(parent, name)
	if err != nil {
		return err
	}
	if dir != (res.Kind == branches.Directory) {
		if dir {
			return unix.ENOTDIR
		}
		return unix.EISDIR
	}
	n, err := f.nodeOf(parent, name, &res)
	if err != nil {
		return err
	}
	defer f.table.forget(n.id, 1)
	if dir {
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
	inUpper := res.InUpper()
	if !inUpper {
		if inUpper, err = f.beforeCoverLocked(n, parent, name, &res.Stat); err != nil {
			return err
		}
	}
	if err := f.takeOutLocked(parent, name, n, inUpper); err != nil {
		return err
	}
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

// takeOutLocked removes name from the merged directory parent on disk.
// Preconditions: parent is in the upper and parent.dir.mu is held for
// writing; n.mu, and of a directory n.dir.mu, is held.
func (f *FS) takeOutLocked(parent *node, name string, n *node, inUpper bool) error {
	tree := parent.dir.tree
	covers := !inUpper
	if inUpper && tree.Merged() {
		var err error
		if covers, err = f.stack.LowerHas(tree, name); err != nil {
			return err
		}
	}
	to, err := acquire(tree, tree.Upper(), name)
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
		return f.whiteOut(tree, to, n.isDir(), inUpper)
	}
	if n.isDir() {
		return f.dropDir(to)
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
	return f.pinLocked(n)
}

// lastUpperLocked reports whether n has one known name in the upper.
func (f *FS) lastUpperLocked(n *node) bool {
	count := 0
	for _, p := range n.names {
		if p.upper {
			count++
		}
	}
	return count <= 1
}

// whiteOut puts a whiteout over name at in the upper part of tree, and takes
// away what the upper has there. The whiteout is there before, or at the
// same instant.
func (f *FS) whiteOut(tree *branches.Dir, at location, isDir, inUpper bool) error {
	if err := f.stack.PrepareWhiteout(tree, at.fd); err != nil {
		return err
	}
	if !f.format.InPlace() {
		if err := f.work.LinkWhiteout(f.format, at.fd, whiteout.Prefix+at.name); err != nil && err != unix.EEXIST {
			return err
		}
		if !inUpper {
			return nil
		}
		if isDir {
			return f.dropDir(at)
		}
		return sys.Unlink(at.fd, at.name)
	}
	if !inUpper {
		return f.work.LinkWhiteout(f.format, at.fd, at.name)
	}
	return f.replaceByWhiteout(at, isDir)
}

// replaceByWhiteout changes the entry at for a whiteout in one step.
func (f *FS) replaceByWhiteout(at location, isDir bool) error {
	tmp, err := f.work.Whiteout(f.format)
	if err != nil {
		return err
	}
	if !isDir {
		if err = sys.Rename(f.work.Tmp, tmp, at.fd, at.name, 0); err != nil {
			f.work.Discard(tmp)
		}
		return err
	}
	if err := sys.Rename(f.work.Tmp, tmp, at.fd, at.name, sys.RenameExchange); err != nil {
		f.work.Discard(tmp)
		return err
	}
	f.work.Discard(tmp) // the directory, with the whiteouts in it
	return nil
}

// dropDir removes a directory of the upper that shows nothing, though it may
// hold whiteouts.
func (f *FS) dropDir(at location) error {
	err := sys.Rmdir(at.fd, at.name)
	if err != unix.ENOTEMPTY && err != unix.EEXIST {
		return err
	}
	tmp := f.work.Name()
	if err := sys.Rename(at.fd, at.name, f.work.Tmp, tmp, sys.RenameNoReplace); err != nil {
		return err
	}
	f.work.Discard(tmp)
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
	if known && !p.upper && was.Nlink > 1 {
		f.nameHiddenLocked(n)
	}
	f.dropIndexLocked(n)
	if n.upper && n.link == "" && was.Nlink <= 1 {
		f.forgetKeys(n)
		if !f.takesOrigin(n.typ) {
			f.dropOrigin(was.Ino)
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
