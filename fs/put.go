package fs

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// newcomer is a name about to be made.
type newcomer struct {
	parent *node
	name   string
	uid    uint32 // as the mount shows them
	gid    uint32
	mode   uint32 // type and permissions, the umask not applied yet
	umask  uint32
	// make makes the object at (dirfd, name) with the given permissions.
	make func(dirfd int, name string, mode uint32) error
	link *node // the object exists already, this is another name of it: owner and mode stay

	on    *branches.Branch // where it is made; set by put
	limit *branches.Branch // whose whiteout hides the name below, nil for none; set by put
	floor *branches.Branch // see branches.NewDir; set by put
	st    sys.Stat         // what was made; set by put
}

// checkNew refuses names that users must not make.
func (f *FS) checkNew(name string) error {
	switch {
	case f.readOnly():
		return unix.EROFS
	case whiteout.Reserved(name):
		return unix.EPERM
	case len(name) > f.maxName(unix.NAME_MAX):
		return unix.ENAMETOOLONG
	}
	return nil
}

// put makes the newcomer in a writable branch and calls done, all under the
// directory's lock.
func (f *FS) put(c *newcomer, done func()) error {
	if err := f.checkNew(c.name); err != nil {
		return err
	}
	if c.parent.dir.lost {
		return unix.ESTALE // as in find
	}
	for {
		if err := f.chooseBranch(c); err != nil {
			return err
		}
		if err := f.copyUpTo(c.parent, c.on); err != nil {
			return err
		}
		if again, err := f.putThere(c, done); !again {
			return err
		}
	}
}

// chooseBranch settles where c is to be made.
func (f *FS) chooseBranch(c *newcomer) error {
	c.on = f.stack.Upper()
	if f.stack.Several() {
		c.parent.dir.mu.RLock()
		defer c.parent.dir.mu.RUnlock()
		limit, err := f.absent(c)
		if err != nil {
			return err
		}
		c.limit = limit
		c.on, err = f.branchFor(c)
		if err != nil {
			return err
		}
	}
	if c.on == nil {
		return unix.EROFS
	}
	return nil
}

// absent makes sure that nothing has the name of c, and returns whose whiteout
// hides it in lower branches. Preconditions: c.parent.dir.mu is held.
func (f *FS) absent(c *newcomer) (limit *branches.Branch, err error) {
	if c.parent.dir.dead {
		return nil, unix.ENOENT
	}
	res, err := f.stack.Lookup(c.parent.dir.tree, c.name)
	if err == nil && res.Kind != branches.NotFound {
		err = unix.EEXIST
	}
	return res.Limit, err
}

// branchFor asks the policy where c is to be made: "link(2) and rename(2)
// systemcalls are exceptions in every policy. They try selecting the branch
// where the source exists" (aufs(5)).
func (f *FS) branchFor(c *newcomer) (*branches.Branch, error) {
	tree := c.parent.dir.tree
	if c.link == nil {
		return f.stack.ForCreate(tree, c.limit, c.mode&unix.S_IFMT == unix.S_IFDIR), nil
	}
	home := c.link.changeable()
	if home == nil { // it has been copied up before
		return nil, unix.ESTALE
	}
	return f.stack.AtOrAbove(home, f.stack.Lowest(tree, c.limit)), nil
}

// putThere is put for the branch that was chosen; again means that the choice
// holds no longer.
func (f *FS) putThere(c *newcomer, done func()) (again bool, err error) {
	if c.link != nil { // it may have to leave its branch for one above
		if err := f.copyUpTo(c.link, c.on); err != nil {
			return false, err
		}
	}
	d := c.parent.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return false, unix.ENOENT
	}
	if f.stack.Several() {
		limit, err := f.absent(c)
		if err != nil || limit != c.limit || d.tree.Floor() < c.on.Index {
			return err == nil, err
		}
	}
	to, err := acquire(d.tree, d.tree.Part(c.on), "")
	if err != nil {
		return false, err
	}
	defer to.release()
	if err := f.putLocked(c, to.fd); err != nil {
		return false, err
	}
	d.changed()
	f.touch(d.tree, c.on)
	done()
	return false, nil
}

// touch gives the directory d a new modification time, after names in it have
// changed in the writable branch on, where its own times are in another.
func (f *FS) touch(d *branches.Dir, on *branches.Branch) {
	home := d.Home()
	if home == on || home == nil {
		return
	}
	if at, err := acquire(d, d.Part(home), ""); err == nil {
		_ = sys.UtimesAt(at.fd, "", unix.Timespec{Nsec: sys.Omit}, unix.Timespec{Nsec: sys.Now})
		at.release()
	}
}

// putLocked makes the object where one call can do it completely, else in the
// work directory, from where it is renamed to its place.
// Preconditions: c.parent.dir.mu is held for writing; dirfd is its part in c.on.
func (f *FS) putLocked(c *newcomer, dirfd int) error {
	isDir := c.mode&unix.S_IFMT == unix.S_IFDIR
	beside := false
	var err error
	if c.parent.dir.tree.MayHaveMarks(c.on) && len(c.name)+len(whiteout.Prefix) <= unix.NAME_MAX {
		if beside, err = whiteout.HasAUFS(dirfd, c.name); err != nil {
			return err
		}
	}
	opaque := isDir && (beside || f.opts.AlwaysOpaque)
	c.floor = f.floorOf(c, opaque)
	top, err := f.topOf(c.parent.dir.tree)
	if err != nil {
		return err
	}
	defer top.release()
	owner, err := f.ownerOf(c, top.fd, !opaque && c.parent.dir.tree.Home() == c.on)
	if err != nil {
		return err
	}
	if owner.native {
		if err := f.makeInPlace(c, dirfd, owner.mode, beside); err != unix.EEXIST {
			return err
		}
		if owner, err = f.ownerOf(c, top.fd, false); err != nil {
			return err
		}
	}
	over, err := f.overWhiteout(c, dirfd)
	if err != nil {
		return err
	}
	tmp, from, err := f.stage(c, owner, top.fd)
	if err != nil {
		return err
	}
	defer from.release()
	if opaque = opaque || isDir && over; opaque {
		err = c.on.Format.SetOpaque(from.fd, tmp)
	}
	c.floor = f.floorOf(c, opaque)
	if err == nil {
		c.st, err = f.statMade(c, from.fd, tmp)
	}
	if err == nil {
		err = f.install(from.fd, tmp, dirfd, c.name, isDir, over)
	}
	if err != nil {
		_ = sys.RemoveAll(from.fd, tmp)
		return err
	}
	if st, err := f.statMade(c, dirfd, c.name); err == nil {
		c.st = st // the rename has changed its ctime
	}
	if beside {
		unhideBeside(dirfd, c.name)
	}
	return nil
}

// makeInPlace makes the object at its name; EEXIST when something is there.
func (f *FS) makeInPlace(c *newcomer, dirfd int, mode uint32, beside bool) error {
	err := c.make(dirfd, c.name, mode)
	if err != nil {
		return err
	}
	if c.st, err = f.statMade(c, dirfd, c.name); err != nil {
		_ = sys.RemoveAll(dirfd, c.name)
		return err
	}
	if beside {
		unhideBeside(dirfd, c.name)
	}
	return nil
}

// floorOf returns the lowest branch on which the directory c can be made
// besides, nil for that of its parent.
func (f *FS) floorOf(c *newcomer, opaque bool) *branches.Branch {
	switch {
	case opaque || c.limit == c.on:
		return c.on
	case c.limit != nil:
		return f.stack.Branches()[c.limit.Index-1]
	}
	return nil
}

// statMade returns the attributes of the new object c, which lies at name.
func (f *FS) statMade(c *newcomer, dirfd int, name string) (sys.Stat, error) {
	st, err := sys.StatAt(dirfd, name, 0)
	if err == nil {
		err = f.complete(c.on, dirfd, name, &st)
	}
	return st, err
}

// unhideBeside removes the whiteout beside an entry that has replaced what it
// hides. An entry beats a whiteout of its own name: one that stays does no harm.
func unhideBeside(dirfd int, name string) { _ = sys.Unlink(dirfd, whiteout.Prefix+name) }

// overWhiteout reports whether a whiteout lies at the very name; anything
// else there is EEXIST.
func (f *FS) overWhiteout(c *newcomer, dirfd int) (bool, error) {
	st, err := sys.StatAt(dirfd, c.name, 0)
	if err == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	is, err := whiteout.IsFile(dirfd, c.name, &st, true)
	if err == nil && !is {
		err = unix.EEXIST
	}
	return is, err
}

// install moves a finished temporary to its name.
func (f *FS) install(from int, tmp string, dirfd int, name string, isDir, over bool) error {
	switch {
	case over && isDir:
		// A directory cannot replace a whiteout; it changes places with it (ovl_create_over_whiteout).
		if err := sys.Rename(from, tmp, dirfd, name, sys.RenameExchange); err != nil {
			return err
		}
		_ = sys.Unlink(from, tmp)
		return nil
	case over:
		return sys.Rename(from, tmp, dirfd, name, 0)
	}
	return sys.Rename(from, tmp, dirfd, name, sys.RenameNoReplace)
}
