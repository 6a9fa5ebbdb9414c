package branches

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Kind is what a lookup found.
type Kind uint8

const (
	// NotFound: no branch has the name, or a whiteout hides it.
	NotFound Kind = iota
	// File: something that is not a directory; the topmost branch answers alone.
	File
	// Directory: a directory; the Resolution's Dir has its parts.
	Directory
)

// Resolution is the answer of a lookup.
type Resolution struct {
	Kind  Kind
	Where *Part    // the part of the parent directory in which the name was found first
	Stat  sys.Stat // of what was found there
	// Dir is the merged directory when Kind is Directory. It has no parts at
	// all when the only one is a mount point of a lower branch.
	Dir *Dir
	// Origin is, for a directory, the attributes of its topmost part in a
	// branch that is only read, else of the lowest, and OriginBranch that
	// branch: the identity of a merged directory, which its copy-up must not change.
	Origin       sys.Stat
	OriginBranch *Branch
	// Home is the writable branch where what was found can be changed, renamed
	// and removed as it is; nil when it must be copied up first.
	Home *Branch
	// Limit is, when nothing was found, the branch whose whiteout hides the name
	// in those below it; nil when there is none.
	Limit *Branch
}

// walk is the state of one lookup.
type walk struct {
	stack *Stack
	name  string // what the lookup is for
	res   Resolution
	parts []*Part
	// want is what to look for in the branches below: a name in the directory
	// or, after an absolute redirect, a path from the root, with a slash first.
	want  string
	low   string   // want below the upper
	stop  bool     // an opaque directory on the way of a redirect: nothing below this branch counts
	floor *Branch  // see Dir
	last  sys.Stat // of the last part
	done  bool
}

// Lookup finds name in d. An absent name is Kind NotFound and no error.
// Preconditions: name is one component and not reserved, or marks are shown.
func (s *Stack) Lookup(d *Dir, name string) (Resolution, error) {
	w := walk{stack: s, name: name, want: name, low: name}
	for i, p := range d.Parts() {
		if err := w.inPart(d, p, w.want, i == len(d.Parts())-1); err != nil {
			return Resolution{}, err
		}
		if p.Branch == s.Upper() {
			w.low = w.want
		}
		if w.done {
			break
		}
		if strings.HasPrefix(w.want, "/") {
			if err := w.absolute(p.Branch.Index); err != nil {
				return Resolution{}, err
			}
			break
		}
	}
	return w.finish(d, name), nil
}

// LowerHas reports whether a part of d below b shows name: whether removing
// name from b needs a whiteout.
func (s *Stack) LowerHas(d *Dir, name string, b *Branch) (bool, error) {
	w := walk{stack: s, name: name, want: name}
	lowers := d.Below(b)
	for i, p := range lowers {
		if err := w.inPart(d, p, name, i == len(lowers)-1); err != nil {
			return false, err
		}
		if w.done || w.res.Kind != NotFound {
			break
		}
	}
	return w.res.Kind != NotFound, nil
}

func (w *walk) finish(d *Dir, name string) Resolution {
	if p := w.res.Where; p != nil && p.path == "" && (!w.stack.Several() || p.Branch.Index <= d.Floor()) {
		w.res.Home = p.Branch
	}
	if w.res.Kind == Directory {
		if w.res.OriginBranch == nil && len(w.parts) > 1 {
			w.res.Origin, w.res.OriginBranch = w.last, w.parts[len(w.parts)-1].Branch
		}
		w.res.Dir = &Dir{stack: w.stack, parent: d, name: name, parts: w.parts, floor: w.floor, redirected: w.want != name}
		switch {
		case strings.HasPrefix(w.low, "/"):
			w.res.Dir.redirect = w.low
		case w.low != name:
			w.res.Dir.redirect = d.LowerPath() + "/" + w.low
		}
	}
	return w.res
}

// end notes that nothing below b counts, and b itself no more when it only says so.
func (w *walk) end(b *Branch, withIt bool) {
	w.done = true
	switch {
	case w.res.Kind == NotFound:
		w.res.Limit = b
	case w.res.Kind == File || w.floor != nil:
	case withIt:
		w.floor = b
	default: // something was found above b
		w.floor = w.stack.branches[b.Index-1]
	}
}

func (w *walk) inPart(d *Dir, p *Part, name string, last bool) error {
	fd, err := d.Acquire(p)
	if err != nil {
		if err == unix.EXDEV { // something has been mounted there since
			return nil
		}
		return err
	}
	defer d.Release(p)
	dirPath := p.path
	if dirPath == "" && p.Branch.mountRel != "" {
		dirPath = p.Path(d)
	}
	path := ""
	switch {
	case p.path != "":
		path = join(p.path, name)
	case name != w.name: // a redirect above leads to it, from another place
		path = join(p.Path(d), name)
	}
	return w.entry(p, fd, dirPath, name, path, last)
}

// entry looks at one entry of one branch and decides whether the walk goes
// on. fd is the directory that holds it; path is what the entry's part would
// have as its path.
func (w *walk) entry(p *Part, fd int, dirPath, name, path string, last bool) error {
	st, err := p.Branch.stat(fd, dirPath, name)
	if err == unix.ENOENT || err == unix.ENAMETOOLONG {
		if last && !w.stack.Several() {
			return nil
		}
		hides, err := p.hidesBeside(fd, name)
		if hides {
			w.end(p.Branch, false)
		}
		return err
	}
	if err != nil {
		return err
	}
	if is, err := p.isWhiteout(fd, name, &st); is || err != nil {
		if is && w.stack.config.ShowMarks && w.res.Kind == NotFound {
			w.res = Resolution{Kind: File, Where: p, Stat: st}
		}
		w.end(p.Branch, false)
		return err
	}
	if !st.IsDir() {
		if w.res.Kind == NotFound { // below a directory a file is hidden
			w.res, w.done = Resolution{Kind: File, Where: p, Stat: st}, true
			return nil
		}
		w.end(p.Branch, false)
		return nil
	}
	return w.addDir(p, fd, name, path, st)
}

// isWhiteout reports whether the entry name of p, open at fd, with attributes
// st is a whiteout.
func (p *Part) isWhiteout(fd int, name string, st *sys.Stat) (bool, error) {
	if !p.Branch.whiteouts {
		return false, nil
	}
	if st.Size == 0 && st.IsRegular() && !p.marksRead.Load() {
		if err := p.readMarks(fd); err != nil {
			return false, err
		}
	}
	return whiteout.IsFile(fd, name, st, p.xattrWhiteouts.Load())
}

func (p *Part) readMarks(fd int) error {
	m, err := whiteout.ReadMarks(fd, ".")
	if err != nil {
		return err
	}
	if m.XattrWhiteouts {
		p.xattrWhiteouts.Store(true)
	}
	p.marksRead.Store(true)
	return nil
}

// addDir adds the directory name of fd as a part.
func (w *walk) addDir(p *Part, fd int, name, path string, st sys.Stat) (err error) {
	if w.res.Kind == NotFound {
		w.res = Resolution{Kind: Directory, Where: p, Stat: st}
	}
	if !p.Branch.Writable() && w.res.OriginBranch == nil {
		w.res.Origin, w.res.OriginBranch = st, p.Branch
	}
	w.last = st
	if st.MountRoot {
		return nil // shown as an empty directory: contributes nothing, hides nothing
	}
	part := &Part{Branch: p.Branch, path: path}
	w.parts = append(w.parts, part)
	if p.Branch.Index == len(w.stack.branches)-1 {
		return nil // nothing below could be hidden or continued
	}
	m, err := whiteout.ReadMarks(fd, name)
	if err != nil {
		return err
	}
	part.xattrWhiteouts.Store(m.XattrWhiteouts)
	part.marksRead.Store(true)
	switch {
	case m.Redirect != "":
		w.redirected(name, m.Redirect)
		if w.floor == nil {
			w.floor = p.Branch
		}
	case m.Opaque:
		w.end(p.Branch, true)
	default:
		hides, err := p.hidesBeside(fd, name)
		if hides {
			w.end(p.Branch, true)
		}
		return err
	}
	return nil
}

// redirected notes that the branches below are to be asked for something else
// than rest, a name and what comes behind it in w.want (ovl_check_redirect).
func (w *walk) redirected(rest, redirect string) {
	before := strings.TrimSuffix(w.want, rest)
	if strings.HasPrefix(redirect, "/") {
		before = ""
		w.stop = false // what was opaque on the way is left behind
	}
	_, after, more := strings.Cut(rest, "/")
	if more {
		after = "/" + after
	}
	w.want = before + redirect + after
}

// absolute looks for the path w.want in every branch below index from,
// component by component (ovl_lookup_layer).
func (w *walk) absolute(from int) error {
	for _, p := range w.stack.root.Parts() { // those below an opaque root are none
		if p.Branch.Index <= from {
			continue
		}
		if err := w.component(p.Branch, w.want[1:]); err != nil || w.done {
			return err
		}
	}
	return nil
}

// component walks path from the root of b. A whiteout or a file on the way
// ends the whole lookup, an absent component only this branch, and an opaque
// directory ends it after this branch (ovl_lookup_single).
func (w *walk) component(b *Branch, path string) error {
	fd, dir := b.Root, "."
	defer func() {
		if fd != b.Root {
			sys.Close(fd)
		}
	}()
	for {
		name, rest, more := strings.Cut(path, "/")
		if !more {
			err := w.entry(&Part{Branch: b, path: dir}, fd, dir, name, join(dir, name), false)
			w.done = w.done || w.stop
			return err
		}
		next, err := w.step(&Part{Branch: b, path: dir}, fd, name, path)
		if err != nil || next < 0 {
			return err
		}
		if fd != b.Root {
			sys.Close(fd)
		}
		fd, dir, path = next, join(dir, name), rest
	}
}

// step opens one directory on the way of component, -1 where the way ends.
// rest is name and what comes behind it.
func (w *walk) step(p *Part, fd int, name, rest string) (next int, err error) {
	st, err := p.Branch.stat(fd, p.path, name)
	switch {
	case err == unix.ENOENT || err == unix.ENAMETOOLONG:
		w.done, err = p.hidesBeside(fd, name)
		w.done = w.done || w.stop
		return -1, err
	case err != nil:
		return -1, err
	case !st.IsDir() || st.MountRoot:
		w.done = true
		return -1, nil
	}
	m, err := whiteout.ReadMarks(fd, name)
	if err != nil {
		return -1, err
	}
	switch {
	case m.Redirect != "":
		w.redirected(rest, m.Redirect)
	case m.Opaque:
		w.stop = true
	default: // a directory beside its own whiteout is opaque
		hides, err := p.hidesBeside(fd, name)
		if err != nil {
			return -1, err
		}
		w.stop = w.stop || hides
	}
	return sys.OpenDir(fd, name)
}
