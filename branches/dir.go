package branches

import (
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/fdcache"
	"github.com/layerfs/layerfs/internal/sys"
)

// Part is the share of one branch in a merged directory.
type Part struct {
	Branch *Branch
	path   string // below the branch root; "" for a part in the upper. Immutable.
	slot   fdcache.Slot
	// xattrWhiteouts: the directory carries overlay.opaque=x. Immutable for
	// lowers; set in the upper before the first whiteout is put there.
	xattrWhiteouts atomic.Bool
	// marksRead says that xattrWhiteouts has been settled: in the lowest
	// branch, where nothing else depends on it, that is put off until needed.
	marksRead atomic.Bool
	// noMarks is set once a full listing has shown that the directory has no
	// .wh. file, and cleared before the union puts one there.
	noMarks atomic.Bool
}

// Dir is one directory of the merged tree.
type Dir struct {
	stack *Stack // immutable
	// low is the path at which the lowers as a union of their own show what
	// is lower of this directory, "" for the root. A redirect says it: the path
	// in one branch would be looked up in others too. Immutable.
	low string

	mu     sync.Mutex
	parent *Dir    // nil for the root. Protected by mu.
	name   string  // protected by mu
	parts  []*Part // top first; the slice is replaced, never changed. Protected by mu.
}

// Parts returns the parts of d, top first. The slice must not be changed.
func (d *Dir) Parts() []*Part {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.parts
}

// Place returns the parent and the name of d in the merged tree.
func (d *Dir) Place() (*Dir, string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.parent, d.name
}

// Upper returns d's part in the upper, or nil.
func (d *Dir) Upper() *Part {
	parts := d.Parts()
	if len(parts) > 0 && parts[0].Branch == d.stack.upper {
		return parts[0]
	}
	return nil
}

// Lowers returns the parts of d that are not in the upper.
func (d *Dir) Lowers() []*Part {
	parts := d.Parts()
	if len(parts) > 0 && parts[0].Branch == d.stack.upper {
		return parts[1:]
	}
	return parts
}

// Merged reports whether more than one branch contributes to d.
func (d *Dir) Merged() bool { return len(d.Parts()) > 1 }

// AddUpper notes that d now exists in the upper, at its place in the tree.
func (d *Dir) AddUpper() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.parts) > 0 && d.parts[0].Branch == d.stack.upper {
		return
	}
	d.parts = append([]*Part{{Branch: d.stack.upper}}, d.parts...)
}

// Path returns the path of d in the merged tree, "/" for the root.
func (d *Dir) Path() string {
	var names []string
	for {
		parent, name := d.Place()
		if parent == nil {
			break
		}
		names = append(names, name)
		d = parent
	}
	var b strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteString("/" + names[i])
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

// LowerPath returns where the lowers have d, as a redirect wants it; "" when
// they do not (ovl_get_redirect).
func (d *Dir) LowerPath() string {
	if len(d.Lowers()) == 0 {
		return ""
	}
	return d.low
}

// Path returns where the part lies below its branch root, "." for the root
// itself; for a part in the upper of d, the place of d.
func (p *Part) Path(d *Dir) string {
	if p.path != "" {
		return p.path
	}
	if s := strings.TrimPrefix(d.Path(), "/"); s != "" {
		return s
	}
	return "."
}

// Acquire returns an O_PATH descriptor of p, a part of d, pinned until Release.
func (d *Dir) Acquire(p *Part) (int, error) {
	return d.stack.fds.Acquire(&p.slot, func() (int, error) { return d.open(p) })
}

// Release ends the use of p's descriptor.
func (d *Dir) Release(p *Part) { d.stack.fds.Release(&p.slot) }

// Close gives up the descriptors of d that are not in use. d stays usable.
func (d *Dir) Close() {
	for _, p := range d.Parts() {
		d.stack.fds.Drop(&p.slot)
	}
}

func (d *Dir) open(p *Part) (int, error) {
	if p.path != "" {
		return sys.OpenDir(p.Branch.Root, p.path)
	}
	for {
		seq := d.stack.place.Load()
		if seq&1 != 0 { // a directory is being renamed this very moment
			yield()
			continue
		}
		fd, err := d.openUpper()
		if d.stack.place.Load() == seq {
			return fd, err
		}
		if err == nil {
			sys.Close(fd)
		}
	}
}

// openUpper opens d in the upper by its parent's descriptor, which is cached
// more often than not.
func (d *Dir) openUpper() (int, error) {
	parent, name := d.Place()
	if parent == nil {
		return sys.OpenDir(d.stack.upper.Root, ".")
	}
	pp := parent.Upper()
	if pp == nil {
		return -1, unix.ENOENT
	}
	pfd, err := parent.Acquire(pp)
	if err != nil {
		return -1, err
	}
	defer parent.Release(pp)
	return sys.OpenDir(pfd, name)
}

// Move changes the place of d in the tree. rename does the renaming on disk;
// the place changes only if it succeeds. No directory can be opened by its
// old place meanwhile, so rename must not acquire descriptors.
func (d *Dir) Move(parent *Dir, name string, rename func() error) error {
	s := d.stack
	s.moveMu.Lock()
	defer s.moveMu.Unlock()
	s.place.Add(1)
	defer s.place.Add(1)
	if err := rename(); err != nil {
		return err
	}
	d.setPlace(parent, name)
	return nil
}

// Exchange is Move for RENAME_EXCHANGE; either may be nil when that side is
// not a directory.
func Exchange(s *Stack, a, aParent *Dir, aName string, b, bParent *Dir, bName string, rename func() error) error {
	s.moveMu.Lock()
	defer s.moveMu.Unlock()
	s.place.Add(1)
	defer s.place.Add(1)
	if err := rename(); err != nil {
		return err
	}
	if a != nil {
		a.setPlace(bParent, bName)
	}
	if b != nil {
		b.setPlace(aParent, aName)
	}
	return nil
}

func (d *Dir) setPlace(parent *Dir, name string) {
	d.mu.Lock()
	d.parent, d.name = parent, name
	d.mu.Unlock()
}

// NewDir returns the merged directory of one that was just made in the
// upper: nothing lower shows through it.
func (s *Stack) NewDir(parent *Dir, name string) *Dir {
	p := &Part{Branch: s.upper}
	p.noMarks.Store(true)
	return &Dir{stack: s, parent: parent, name: name, parts: []*Part{p}}
}
