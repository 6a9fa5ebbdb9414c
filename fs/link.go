package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// Link implements fuse.RawFileSystem.
func (f *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	c, code := f.newcomerIn(&in.InHeader, name, 0, 0)
	if !code.Ok() {
		return code
	}
	n, code := f.node(in.Oldnodeid)
	if !code.Ok() {
		return code
	}
	if err := f.checkNew(name); err != nil {
		return status(err)
	}
	if err := f.copyUp(n); err != nil {
		return status(err)
	}
	c.link = n
	c.make = func(dirfd int, name string, _ uint32) error { return f.linkLocked(n, dirfd, name) }
	return status(f.put(c, func() {
		n.mu.Lock()
		f.addPlaceLocked(n, place{c.parent, name, n.home})
		if n.back != nil && n.opens == 0 { // it stayed open because it had no name
			f.recents.add(n)
		}
		n.mu.Unlock()
		f.table.alias(n, f.identity(c.on, &c.st)) // counts nothing; the key may have gone with a former last name
		f.table.count1(n)
		f.entry(n, &c.st, out)
	}))
}

// linkLocked links n's file to name in dirfd.
func (f *FS) linkLocked(n *node, dirfd int, name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := f.ensureThawedLocked(n); err != nil {
		return err
	}
	for _, p := range n.names {
		if p.in != nil {
			from, err := acquire(p.dir.dir.tree, p.dir.dir.tree.On(p.in), p.name)
			if err != nil {
				return err
			}
			defer from.release()
			return sys.Link(from.fd, from.name, dirfd, name)
		}
	}
	if n.link != "" {
		return sys.Link(f.index(n).fd, n.link, dirfd, name)
	}
	if n.back == nil {
		return unix.ENOENT
	}
	return sys.LinkFd(n.back.fd, dirfd, name)
}
