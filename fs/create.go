package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclUnknown = 0
	aclNone    = 1
	aclSome    = 2
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
		f.applyOverride(c.on, dirfd, name, &st)
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

// owner is what a new object must be given.
type owner struct {
	uid, gid uint32 // on disk
	mode     uint32 // permissions
	native   bool   // creating it in its directory does all that by itself
	acl      bool   // the directory has a default ACL
}

// ownerOf decides about owner and permissions of a newcomer, as the kernel
// does in inode_init_owner and posix_acl_create, in a directory that looks as
// dirfd does. inPlace says that it is made in that one, whose set-group-id bit
// then acts by itself.
func (f *FS) ownerOf(c *newcomer, dirfd int, inPlace bool) (owner, error) {
	if c.link != nil {
		return owner{native: inPlace}, nil
	}
	o := owner{mode: c.mode & 07777, acl: f.hasDefaultACL(c, dirfd)}
	if !o.acl {
		o.mode &^= c.umask
	}
	o.uid, o.gid = f.storedUID(c.uid), f.storedGID(c.gid)
	if f.opts.XattrPermissions != 0 {
		return o, nil
	}
	if inPlace && o.uid == f.euid && o.gid == f.egid {
		o.native = true
		return o, nil
	}
	st, err := sys.FStat(dirfd)
	if err != nil {
		return o, err
	}
	if st.Mode&unix.S_ISGID != 0 {
		o.gid = st.GID
		if c.mode&unix.S_IFMT == unix.S_IFDIR {
			o.mode |= unix.S_ISGID
		}
	}
	return o, nil
}

func (f *FS) hasDefaultACL(c *newcomer, dirfd int) bool {
	if f.opts.NoACL || f.opts.NoXattrs {
		return false
	}
	d := c.parent.dir
	if home := d.tree.Home(); d.acl == aclUnknown || d.aclOf != home {
		d.acl, d.aclOf = aclNone, home
		if n, err := sys.GetXattrInto(dirfd, "", aclDefault, nil); err == nil && n > 0 {
			d.acl = aclSome
		}
	}
	return d.acl == aclSome
}

// stage makes the object under a temporary name and gives it its owner.
func (f *FS) stage(c *newcomer, o owner, dirfd int) (tmp string, from location, err error) {
	work := c.on.Work
	tmp = work.Name()
	from = location{work.Tmp, "", noRelease}
	if o.acl {
		if from, err = aclStage(work, dirfd); err != nil {
			return "", from, err
		}
	}
	err = c.make(from.fd, tmp, o.mode)
	if err == nil && c.link == nil {
		err = f.giveAway(from.fd, tmp, c, o)
	}
	if err != nil {
		_ = sys.RemoveAll(from.fd, tmp)
		from.release()
	}
	return tmp, from, err
}

// aclStage makes a temporary directory with the default ACL of dirfd, so that
// what is made inside inherits it as it would in dirfd.
func aclStage(work *branches.Work, dirfd int) (location, error) {
	name := work.Name()
	if err := sys.Mkdir(work.Tmp, name, 0700); err != nil {
		return location{}, err
	}
	acl, err := sys.GetXattr(dirfd, "", aclDefault)
	if err == nil {
		err = sys.SetXattr(work.Tmp, name, aclDefault, acl, 0)
	}
	var fd int
	if err == nil {
		fd, err = sys.OpenDir(work.Tmp, name)
	}
	if err != nil {
		work.Discard(name)
		return location{}, err
	}
	return location{fd, "", func() { sys.Close(fd); work.Discard(name) }}, nil
}

func (f *FS) giveAway(dirfd int, name string, c *newcomer, o owner) error {
	if f.opts.XattrPermissions != 0 {
		st, err := sys.StatAt(dirfd, name, 0)
		if err != nil {
			return err
		}
		mode := o.mode
		if o.acl {
			mode = st.Mode&0777 | o.mode&07000 // what the default ACL allows
		}
		st.UID, st.GID, st.Mode = o.uid, o.gid, c.mode&unix.S_IFMT|mode
		return f.setOverride(dirfd, name, &st)
	}
	err := sys.ChownAt(dirfd, name, o.uid, o.gid)
	if err == unix.EPERM || err == unix.EINVAL {
		err = nil // not ours to give: it stays the daemon's, as fuse-overlayfs has it when squashed
	}
	if err != nil || o.mode&(unix.S_ISUID|unix.S_ISGID) == 0 || c.mode&unix.S_IFMT == unix.S_IFLNK {
		return err
	}
	// chown has cleared them. The other bits are what a default ACL has made of them.
	st, err := sys.StatAt(dirfd, name, 0)
	if err != nil {
		return err
	}
	return sys.ChmodAt(dirfd, name, st.Mode&0777|o.mode&07000)
}

// made returns the node of the object that put has made for c.
// Preconditions: c.parent.dir.mu is held for writing.
func (f *FS) made(c *newcomer) *node {
	key := f.identity(c.on, &c.st)
	n := &node{ino: key, typ: c.st.Type(), names: []place{{c.parent, c.name, c.on}}}
	if c.st.IsDir() {
		n.dir = &dirNode{tree: f.stack.NewDir(c.parent.dir.tree, c.name, c.on, c.floor)}
	} else {
		n.home = c.on
	}
	f.table.addKid(c.parent, 1)
	n = f.table.insert(n, key, true)
	if n.isDir() {
		f.watcher.watch(n)
	}
	return n
}

// makeNew is put followed by made and the answer.
func (f *FS) makeNew(c *newcomer, out *fuse.EntryOut, and func(n *node)) fuse.Status {
	return status(f.put(c, func() {
		n := f.made(c)
		if and != nil {
			and(n)
		}
		f.entry(n, &c.st, out)
	}))
}

func (f *FS) newcomerIn(in *fuse.InHeader, name string, mode, umask uint32) (*newcomer, fuse.Status) {
	parent, code := f.node(in.NodeId)
	if !code.Ok() {
		return nil, code
	}
	if !parent.isDir() {
		return nil, fuse.Status(unix.ENOTDIR)
	}
	return &newcomer{parent: parent, name: name, uid: in.Uid, gid: in.Gid, mode: mode, umask: umask}, fuse.OK
}

// Mkdir implements fuse.RawFileSystem.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	c, code := f.newcomerIn(&in.InHeader, name, in.Mode&07777|unix.S_IFDIR, in.Umask)
	if !code.Ok() {
		return code
	}
	c.make = sys.Mkdir
	return f.makeNew(c, out, nil)
}

// Symlink implements fuse.RawFileSystem.
func (f *FS) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	c, code := f.newcomerIn(in, name, unix.S_IFLNK|0777, 0)
	if !code.Ok() {
		return code
	}
	c.make = func(dirfd int, name string, _ uint32) error { return sys.Symlink(target, dirfd, name) }
	return f.makeNew(c, out, nil)
}

// Mknod implements fuse.RawFileSystem. A device 0:0 would be a whiteout.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if in.Mode&unix.S_IFMT == unix.S_IFCHR && in.Rdev == 0 {
		return fuse.EPERM
	}
	c, code := f.newcomerIn(&in.InHeader, name, in.Mode, in.Umask)
	if !code.Ok() {
		return code
	}
	c.make = func(dirfd int, name string, mode uint32) error {
		return f.makeSpecial(dirfd, name, in.Mode&unix.S_IFMT|mode, in.Rdev)
	}
	return f.makeNew(c, out, nil)
}

// makeSpecial makes a node that is not a directory or link. With overrides a
// device is an ordinary file on disk.
func (f *FS) makeSpecial(dirfd int, name string, mode, rdev uint32) error {
	switch mode & unix.S_IFMT {
	case unix.S_IFBLK, unix.S_IFCHR:
		if f.opts.XattrPermissions != 0 {
			return sys.Mknod(dirfd, name, unix.S_IFREG|0600, 0)
		}
	}
	return sys.Mknod(dirfd, name, mode, rdev)
}

// Create implements fuse.RawFileSystem.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	c, code := f.newcomerIn(&in.InHeader, name, in.Mode&07777|unix.S_IFREG, in.Umask)
	if !code.Ok() {
		return code
	}
	fd := -1
	c.make = func(dirfd int, name string, mode uint32) (err error) {
		fd, err = sys.OpenIn(dirfd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, mode)
		return err
	}
	code = f.makeNew(c, &out.EntryOut, func(n *node) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.opens, n.writes = 1, 1
		if b := f.newBacking(fd, true); f.mayStayOpen() {
			n.back = b
		} else {
			b.release()
		}
	})
	if !code.Ok() {
		if fd >= 0 {
			sys.Close(fd)
		}
		return code
	}
	f.counters.opens.Add(1)
	out.OpenFlags = f.openFlags(in.Flags)
	return fuse.OK
}

// Tmpfile implements fuse.RawFileSystem: O_TMPFILE.
func (f *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	c, code := f.newcomerIn(&in.InHeader, "", in.Mode&07777|unix.S_IFREG, in.Umask)
	if !code.Ok() {
		return code
	}
	if f.readOnly() {
		return fuse.EROFS
	}
	if err := f.copyUp(c.parent); err != nil {
		return status(err)
	}
	c.parent.dir.mu.Lock()
	defer c.parent.dir.mu.Unlock()
	// Where the directory's own attributes are: a policy is for names.
	if c.on = c.parent.dir.tree.Home(); c.on == nil {
		return fuse.EROFS
	}
	to, err := acquire(c.parent.dir.tree, c.parent.dir.tree.Part(c.on), "")
	if err != nil {
		return status(err)
	}
	defer to.release()
	o, err := f.ownerOf(c, to.fd, true)
	if err != nil {
		return status(err)
	}
	fd, err := sys.OpenIn(to.fd, ".", unix.O_TMPFILE|unix.O_RDWR, o.mode)
	if err != nil {
		return status(err)
	}
	if !o.native {
		err = f.giveAway(fd, "", c, o)
	}
	var st sys.Stat
	if err == nil {
		st, err = sys.FStat(fd)
	}
	if err != nil {
		sys.Close(fd)
		return status(err)
	}
	key := f.identity(c.on, &st)
	n := f.table.insert(&node{ino: key, typ: unix.S_IFREG, home: c.on, back: f.newBacking(fd, true), opens: 1, writes: 1}, key, true)
	f.entry(n, &st, &out.EntryOut)
	out.OpenFlags = f.openFlags(in.Flags)
	return fuse.OK
}
