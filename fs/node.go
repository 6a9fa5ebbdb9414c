package fs

import (
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

// node is one inode of the merged tree, by all its names.
type node struct {
	id  uint64 // FUSE node id, never reused. Immutable.
	ino uint64 // what stat shows. Immutable.
	typ uint32 // S_IFMT. Immutable.

	// Protected by table.mu.
	keys    [2]uint64 // the identities under which the table knows it; 0 is none
	lookups uint64    // what the kernel remembers
	kids    int       // places of other nodes that name this one as their directory

	dir   *dirNode  // directories only. Immutable.
	low   lowFile   // where the file lies in a lower, zero when it does not. Changes only with the branches. Protected by mu.
	fixed *sys.Stat // attributes of a mount point, which has no part. Immutable.

	// copyMu is held for the whole copy-up of this node, and while a settle puts
	// a plain file in its place; for reading by those who write its data.
	copyMu sync.RWMutex

	mu    sync.Mutex
	names []place // protected by mu; empty when unlinked. A directory has one.
	// home is, for a file, the writable branch where it is changed as it is; nil
	// for one that must be copied up first. It only goes up. Protected by mu.
	home      *branches.Branch
	adj       int32    // links in the union = links on disk + adj. Protected by mu.
	link      string   // key in the link index, "" for none. Protected by mu.
	frozen    bool     // the link record is absolute, see linkcount.go. Protected by mu.
	back      *backing // the open file, while opens > 0, for a moment (recents), or when no name is left. Protected by mu.
	recent    bool     // n is among the recents. Protected by mu.
	used      bool     // back was used since the recents were looked through. Protected by mu.
	opens     int      // handles, if the kernel tells of them (Options.Opens). Protected by mu.
	writes    int      // of them, those that may write. Protected by mu.
	backingID int32    // by which the kernel knows back (passLocked), 0 for not. Protected by mu.
	passed    bool     // the kernel has read or written the file itself. Protected by mu.
	// capless: the file has no capabilities, as its maker or the last look knows. Protected by mu.
	capless bool
	broken  bool // a stub whose content cannot be found. Protected by mu.
}

// dirNode is what only a directory has.
type dirNode struct {
	tree *branches.Dir // immutable

	// mu orders what happens to the names in this directory: readers look
	// names up, writers make, remove, rename or copy one up.
	mu    sync.RWMutex
	dead  bool             // removed. Protected by mu.
	lost  bool             // a change of the branches has put something else in its place. Changes only with them.
	pin   *branches.Part   // the upper part, kept open from the removal on. Protected by mu.
	acl   int8             // default ACL of the part that was changed last: 0 unknown, 1 none, 2 some. Protected by mu.
	aclOf *branches.Branch // Home of the tree when acl was read. Protected by mu.

	listMu sync.Mutex
	list   *listing // what readers are reading, nil when that is not known. Protected by listMu.
	// stale says that names have changed since list was made. It is set with mu
	// held for writing, cleared with mu held for reading and listMu.
	stale bool
	// Where one who reads the files in the order of list is, and up to where they
	// were read ahead. Protected by listMu.
	fileAt, filesTo int

	readAt atomic.Int64 // when somebody began to read it last, Unix nanoseconds
}

// pinLocked keeps the topmost part, if it is in a writable branch, of a
// directory that is about to be removed open until the kernel forgets it:
// somebody may be in it. Preconditions: d.mu is held for writing.
func (d *dirNode) pinLocked() {
	if p := d.tree.Part(d.tree.Home()); p != nil && d.pin == nil {
		if _, err := d.tree.Acquire(p); err == nil {
			d.pin = p
		}
	}
}

// place is one name of a node.
type place struct {
	dir  *node
	name string
	in   *branches.Branch // where it exists, the home of the node; nil for an alias in a lower
}

// lowFile says where a file lies in a lower branch.
type lowFile struct {
	dir  *branches.Dir
	part *branches.Part
	name string
}

// path is the path of the file in its branch, "" of one that lies in none.
func (l lowFile) path() string {
	if l.part == nil {
		return ""
	}
	if dir := l.part.Path(l.dir); dir != "." {
		return dir + "/" + l.name
	}
	return l.name
}

func (n *node) isDir() bool { return n.dir != nil }

// changeable returns the writable branch where n can be changed as it is, nil
// when it must be copied up first.
func (n *node) changeable() *branches.Branch {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changeableLocked()
}

// Preconditions: n.mu is held.
func (n *node) changeableLocked() *branches.Branch {
	if n.isDir() {
		return n.dir.tree.Home()
	}
	return n.home
}

// location is where a node can be reached by *at calls: name in fd, or fd
// itself when name is empty. release must be called.
type location struct {
	fd      int
	name    string
	release func()
}

func noRelease() {}

// locateLocked finds n on disk. Preconditions: n.mu is held, which keeps n
// from being renamed or removed meanwhile.
func (f *FS) locateLocked(n *node) (location, error) {
	if n.isDir() {
		parts := n.dir.tree.Parts()
		if len(parts) == 0 {
			return location{}, unix.ESTALE // has the kernel look the whole path up again
		}
		return acquire(n.dir.tree, parts[0], "")
	}
	if n.home == nil || n.back == nil || !n.back.writable {
		at, err := f.namedLocked(n)
		if err != unix.ESTALE {
			return at, err
		}
	}
	if n.back != nil {
		return location{n.back.fd, "", noRelease}, nil
	}
	return location{}, unix.ESTALE
}

// namedLocked is locateLocked by a name of the file n; ESTALE when it has none.
// Preconditions: n.mu is held.
func (f *FS) namedLocked(n *node) (location, error) {
	if n.home == nil {
		return acquire(n.low.dir, n.low.part, n.low.name)
	}
	for _, p := range n.names {
		if p.in != nil {
			return acquire(p.dir.dir.tree, p.dir.dir.tree.On(p.in), p.name)
		}
	}
	if n.link != "" {
		return location{f.index(n).fd, n.link, noRelease}, nil
	}
	return location{}, unix.ESTALE
}

func acquire(d *branches.Dir, p *branches.Part, name string) (location, error) {
	if p == nil {
		return location{}, unix.ESTALE
	}
	fd, err := d.Acquire(p)
	if err != nil {
		return location{}, err
	}
	return location{fd, name, func() { d.Release(p) }}, nil
}

// addPlaceLocked notes that n has the name. Preconditions: n.mu is held.
func (f *FS) addPlaceLocked(n *node, p place) {
	for i, q := range n.names {
		if q.dir == p.dir && q.name == p.name {
			if p.in != nil {
				n.names[i].in = p.in
			}
			return
		}
	}
	n.names = append(n.names, p)
	f.table.addKid(p.dir, 1)
}

// removePlaceLocked forgets a name of n and returns what was known of it.
// Preconditions: n.mu is held.
func (f *FS) removePlaceLocked(n *node, dir *node, name string) (place, bool) {
	i := slices.IndexFunc(n.names, func(p place) bool { return p.dir == dir && p.name == name })
	if i < 0 {
		return place{}, false
	}
	p := n.names[i]
	n.names = slices.Delete(n.names, i, i+1)
	f.table.addKid(dir, -1)
	return p, true
}
