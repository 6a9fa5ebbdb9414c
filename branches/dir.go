package branches

import (
	"math"
	"slices"
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
	// path is where it lies below the branch root; "" for a part in a writable
	// branch at the place of its Dir: only there can names be changed. Immutable.
	path string
	slot fdcache.Slot
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

	mu     sync.Mutex
	parent *Dir    // nil for the root. Protected by mu.
	name   string  // protected by mu
	parts  []*Part // top first; the slice is replaced, never changed. Protected by mu.
	// floor is the lowest branch on which d can be made, nil for the bottom:
	// something ends the union there or just below it. Protected by mu.
	floor *Branch
	// redirect is what the part in the topmost writable branch says of the
	// branches below it, made absolute; "" when they have d at the place that
	// its parent has there. Protected by mu.
	redirect   string
	redirected bool // a redirect in any branch says where some of the parts are. Protected by mu.
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

// Part returns d's part in the writable branch b at the place of d, or nil.
func (d *Dir) Part(b *Branch) *Part {
	if p := d.On(b); p != nil && p.path == "" {
		return p
	}
	return nil
}

// On returns d's part in b, wherever it is, or nil.
func (d *Dir) On(b *Branch) *Part {
	for _, p := range d.Parts() {
		if p.Branch == b {
			return p
		}
	}
	return nil
}

// Home returns the writable branch where the attributes of d can be changed as
// they are, nil when the topmost part is only read.
func (d *Dir) Home() *Branch {
	if parts := d.Parts(); len(parts) > 0 && parts[0].path == "" {
		return parts[0].Branch
	}
	return nil
}

// Below returns the parts of d in branches below b; all of them for nil.
func (d *Dir) Below(b *Branch) []*Part {
	parts := d.Parts()
	for i, p := range parts {
		if b == nil || p.Branch.Index > b.Index {
			return parts[i:]
		}
	}
	return nil
}

// Merged reports whether more than one branch contributes to d.
func (d *Dir) Merged() bool { return len(d.Parts()) > 1 }

// Floor returns the index of the lowest branch on which d can be made.
func (d *Dir) Floor() int {
	floor := math.MaxInt
	for d != nil {
		d.mu.Lock()
		if d.floor != nil {
			floor = min(floor, d.floor.Index)
		}
		parent := d.parent
		d.mu.Unlock()
		d = parent
	}
	return floor
}

// Add notes that d now exists in the writable branch b, at its place in the tree.
func (d *Dir) Add(b *Branch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, found := slices.BinarySearchFunc(d.parts, b.Index, func(p *Part, index int) int { return p.Branch.Index - index })
	if !found {
		d.parts = slices.Insert(slices.Clone(d.parts), at, &Part{Branch: b})
	}
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

// LowerPath returns where the branches below the topmost writable one, as a
// union of their own, show d, as a redirect wants it (ovl_get_redirect).
func (d *Dir) LowerPath() string {
	below := ""
	for {
		// Redirect and place together: a rename sets one before it changes the other.
		d.mu.Lock()
		redirect, parent, name := d.redirect, d.parent, d.name
		d.mu.Unlock()
		if redirect != "" {
			return redirect + below
		}
		if parent == nil {
			return below
		}
		below = "/" + name + below
		d = parent
	}
}

// SetRedirect notes that d's part in the topmost writable branch says path of
// the branches below it.
func (d *Dir) SetRedirect(path string) {
	d.mu.Lock()
	d.redirect = path
	d.mu.Unlock()
}

// Path returns where p, a part of d, lies below its branch root, "." for the
// root itself.
func (p *Part) Path(d *Dir) string {
	if p.path != "" {
		return p.path
	}
	parent, name := d.Place()
	if parent == nil {
		return "."
	}
	pp := parent.On(p.Branch)
	if pp == nil {
		return strings.TrimPrefix(d.Path(), "/")
	}
	return join(pp.Path(parent), name)
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
	if p.path == "" {
		if now := d.On(p.Branch); now != nil {
			p = now // a rename may have left it behind
		}
	}
	if p.path != "" {
		return sys.OpenDir(p.Branch.Root, p.path)
	}
	for {
		seq := d.stack.place.Load()
		if seq&1 != 0 { // a directory is being renamed this very moment
			yield()
			continue
		}
		fd, err := d.openAtPlace(p.Branch)
		if d.stack.place.Load() == seq {
			return fd, err
		}
		if err == nil {
			sys.Close(fd)
		}
	}
}

// openAtPlace opens d in b by its parent's descriptor, which is cached more
// often than not.
func (d *Dir) openAtPlace(b *Branch) (int, error) {
	parent, name := d.Place()
	if parent == nil {
		return sys.OpenDir(b.Root, ".")
	}
	pp := parent.On(b)
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

// Move changes the place of d in the tree. rename does the renaming on disk, in
// the writable branch b; the place changes only if it succeeds. No directory can
// be opened by its old place meanwhile, so rename must not acquire descriptors.
func (d *Dir) Move(b *Branch, parent *Dir, name string, rename func() error) error {
	s := d.stack
	s.moveMu.Lock()
	defer s.moveMu.Unlock()
	s.place.Add(1)
	defer s.place.Add(1)
	if err := rename(); err != nil {
		return err
	}
	d.setPlace(b, parent, name)
	return nil
}

// Exchange is Move for RENAME_EXCHANGE; either may be nil when that side is
// not a directory.
func Exchange(s *Stack, on *Branch, a, aParent *Dir, aName string, b, bParent *Dir, bName string, rename func() error) error {
	s.moveMu.Lock()
	defer s.moveMu.Unlock()
	s.place.Add(1)
	defer s.place.Add(1)
	if err := rename(); err != nil {
		return err
	}
	if a != nil {
		a.setPlace(on, bParent, bName)
	}
	if b != nil {
		b.setPlace(on, aParent, aName)
	}
	return nil
}

// setPlace gives d, which was renamed in b, its new place. Its parts in
// writable branches below stay where they are, and from now on are only read:
// the redirect in b leads to them. Directories in d follow it without
// further ado, since they are opened by their parent.
func (d *Dir) setPlace(b *Branch, parent *Dir, name string) {
	parts := slices.Clone(d.Parts())
	for i, p := range parts {
		if p.path == "" && p.Branch.Index > b.Index {
			parts[i] = p.left(p.Path(d))
		}
	}
	d.mu.Lock()
	d.parent, d.name, d.parts, d.floor = parent, name, parts, b
	d.mu.Unlock()
}

// left returns p as a part that stays at path.
func (p *Part) left(path string) *Part {
	out := &Part{Branch: p.Branch, path: path}
	out.xattrWhiteouts.Store(p.xattrWhiteouts.Load())
	out.marksRead.Store(p.marksRead.Load())
	out.noMarks.Store(p.noMarks.Load())
	return out
}

// NewDir returns the merged directory of one that was just made in the
// writable branch b: nothing shows through it. floor is the lowest branch on
// which it can be made as well, nil for that of its parent.
func (s *Stack) NewDir(parent *Dir, name string, b, floor *Branch) *Dir {
	p := &Part{Branch: b}
	p.noMarks.Store(true)
	return &Dir{stack: s, parent: parent, name: name, parts: []*Part{p}, floor: floor}
}
