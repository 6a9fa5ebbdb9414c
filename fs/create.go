package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

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
	out.OpenFlags = f.openFlags(in.Flags)
	code = f.makeNew(c, &out.EntryOut, func(n *node) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.capless = true
		if f.opts.Opens {
			n.opens, n.writes = 1, 1
		}
		if b := f.newBacking(fd, true); f.staysOpenLocked(n) {
			n.back = b
			f.passLocked(n, b, &out.OpenOut)
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
	n := &node{ino: key, typ: unix.S_IFREG, home: c.on, back: f.newBacking(fd, true), capless: true}
	if f.opts.Opens {
		n.opens, n.writes = 1, 1
	}
	n = f.table.insert(n, key, true)
	f.entry(n, &st, &out.EntryOut)
	out.OpenFlags = f.openFlags(in.Flags)
	return fuse.OK
}
