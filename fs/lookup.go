package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Lookup implements fuse.RawFileSystem.
func (f *FS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	parent, code := f.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	if !parent.isDir() {
		return fuse.Status(unix.ENOTDIR)
	}
	parent.dir.mu.RLock()
	defer parent.dir.mu.RUnlock()
	n, st, err := f.lookup(parent, name)
	if err == unix.ENOENT && f.opts.Timeout > 0 {
		// A negative entry: the kernel may remember the absence.
		f.setValid(&out.EntryValid, &out.EntryValidNsec)
		return fuse.OK
	}
	if err != nil {
		return status(err)
	}
	f.entry(n, &st, out)
	return fuse.OK
}

// entry answers with n, of which a lookup has been counted.
func (f *FS) entry(n *node, st *sys.Stat, out *fuse.EntryOut) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.link != "" || n.adj != 0 {
		// How many links are on disk and how many of them count belong together,
		// and st was read before n.mu was held.
		if now, err := f.statLocked(n); err == nil {
			st = &now
		}
	}
	out.NodeId = n.id
	f.fillLocked(n, st, &out.Attr)
	f.setValid(&out.EntryValid, &out.EntryValidNsec)
	f.setValid(&out.AttrValid, &out.AttrValidNsec)
	if n.broken {
		out.AttrValid, out.AttrValidNsec = 0, 0 // who asks for the size gets EIO
	}
}

// find resolves name in parent and refuses what users must not see.
// Preconditions: parent.dir.mu is held.
func (f *FS) find(parent *node, name string) (branches.Resolution, error) {
	if parent.dir.lost {
		return branches.Resolution{}, unix.ESTALE // has the kernel look the whole path up again
	}
	if parent.dir.dead || whiteout.Reserved(name) && !f.opts.ShowMarks {
		return branches.Resolution{}, unix.ENOENT
	}
	if len(name) > unix.NAME_MAX {
		return branches.Resolution{}, unix.ENAMETOOLONG
	}
	res, err := f.stack.Lookup(parent.dir.tree, name)
	if err == nil && res.Kind == branches.NotFound {
		err = unix.ENOENT
	}
	return res, err
}

// lookup returns the node that name in parent stands for, counted as looked
// up, and its attributes. Preconditions: parent.dir.mu is held.
func (f *FS) lookup(parent *node, name string) (*node, sys.Stat, error) {
	res, err := f.find(parent, name)
	if err != nil {
		return nil, sys.Stat{}, err
	}
	return f.lookedUp(parent, name, &res)
}

// lookupKnown is lookup for a name that may be among what is known.
// Preconditions: parent.dir.mu is held.
func (f *FS) lookupKnown(parent *node, name string, known *answers) (*node, sys.Stat, error) {
	if known == nil || known.found[name] == nil {
		return f.lookup(parent, name)
	}
	res := known.found[name]
	delete(known.found, name) // its directory is that of one node
	return f.lookedUp(parent, name, res)
}

// lookedUp is lookup for what was found. Preconditions: parent.dir.mu is held.
func (f *FS) lookedUp(parent *node, name string, res *branches.Resolution) (*node, sys.Stat, error) {
	n, err := f.nodeOf(parent, name, res)
	if err != nil {
		return nil, sys.Stat{}, err
	}
	if home := n.changeable(); !n.isDir() && home != nil && home != res.Home {
		// An alias in a lower of a file that has been copied up by another name.
		n.mu.Lock()
		st, err := f.statLocked(n)
		n.mu.Unlock()
		if err != nil {
			f.table.forget(n.id, 1)
		}
		return n, st, err
	}
	return n, res.Stat, nil
}

// nodeOf returns the node of a resolution, counted as looked up, and
// completes res.Stat. Preconditions: parent.dir.mu is held.
func (f *FS) nodeOf(parent *node, name string, res *branches.Resolution) (*node, error) {
	err := f.completeResolution(parent, name, res)
	broken := err == errBroken // it can still be looked at, renamed and removed
	if err != nil && !broken {
		return nil, err
	}
	if res.Kind == branches.Directory {
		return f.dirNodeOf(parent, name, res), nil
	}
	key := f.identity(res.Where.Branch, &res.Stat)
	n := f.table.find(key)
	if n == nil {
		fresh, err := f.newFile(parent, name, res, key)
		if err != nil {
			return nil, err
		}
		n = fresh
	}
	n.mu.Lock()
	n.broken = broken
	p := place{parent, name, nil}
	if n.home == res.Home {
		p.in = n.home
	}
	f.addPlaceLocked(n, p)
	if f.opts.Outside {
		n.foundAgainLocked(p, res)
	}
	n.mu.Unlock()
	return n, nil
}

// foundAgainLocked prefers the name p, by which the file n has just been found:
// others may have taken the one that it was found by before.
// Preconditions: n.mu is held.
func (n *node) foundAgainLocked(p place, res *branches.Resolution) {
	if n.home == nil && n.low.part != nil {
		n.low = lowFile{p.dir.dir.tree, res.Where, p.name}
	}
	for i, q := range n.names {
		if q.dir == p.dir && q.name == p.name {
			n.names[0], n.names[i] = q, n.names[0]
		}
	}
}

// completeResolution is complete for what a lookup has found.
func (f *FS) completeResolution(parent *node, name string, res *branches.Resolution) error {
	b := res.Where.Branch
	mayBeStub := res.Stat.IsRegular() && (b.Stubs.Load() || res.Stat.Size == stub.Size)
	if f.overrideAttr(b) == "" && !mayBeStub {
		return nil
	}
	at, err := acquire(parent.dir.tree, res.Where, name)
	if err != nil {
		return err
	}
	defer at.release()
	return f.complete(b, at.fd, at.name, &res.Stat)
}

func (f *FS) dirNodeOf(parent *node, name string, res *branches.Resolution) *node {
	key := f.keyOf(res)
	if n := f.table.find(key); n != nil {
		f.refreshOutside(n, res)
		return n
	}
	n := &node{ino: key, typ: unix.S_IFDIR, dir: &dirNode{tree: res.Dir}}
	if len(res.Dir.Parts()) == 0 {
		st := res.Stat
		n.fixed = &st
	}
	n.names = []place{{parent, name, nil}}
	f.table.addKid(parent, 1)
	if other := f.table.insert(n, key, false); other != n {
		f.table.addKid(parent, -1)
		return other
	}
	f.watcher.watch(n)
	return n
}

// keyOf is the identity by which the table knows what a lookup has found.
func (f *FS) keyOf(res *branches.Resolution) uint64 {
	if res.OriginBranch != nil {
		return f.identity(res.OriginBranch, &res.Origin)
	}
	return f.identity(res.Where.Branch, &res.Stat)
}

// newFile makes the node of a file that is not known yet.
func (f *FS) newFile(parent *node, name string, res *branches.Resolution, key uint64) (*node, error) {
	if res.Stat.Nlink > 1 && (res.Home == nil || f.stack.Several()) {
		if up, err := f.linkedUp(parent, name, res, key); up != nil || err != nil {
			return up, err
		}
	}
	n := &node{ino: key, typ: res.Stat.Type(), home: res.Home}
	if n.home == nil {
		n.low = lowFile{parent.dir.tree, res.Where, name}
	} else if err := f.recallOrigin(parent, name, n, res.Stat.Ino); err != nil {
		return nil, err
	}
	return f.table.insert(n, key, false), nil
}
