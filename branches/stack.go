package branches

import (
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/fdcache"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Stack is an open, ordered list of branches. Both lists change only while
// nobody else uses the stack (live.go).
type Stack struct {
	branches []*Branch // top first
	writable []*Branch // those that changes may go to, top first
	config   Config    // what the stack was opened with, for branches that are added. Immutable.
	exclude  []ownDir  // not to be shown, beside the writable branches. Immutable.
	nextID   int       // of the next branch that is added
	fds      *fdcache.Cache
	root     *Dir
	chooser  chooser

	// place is odd while a directory changes its place in the tree; whoever
	// opened an upper directory by its place checks that place did not move.
	place  atomic.Uint64
	moveMu sync.Mutex // serialises those who make place odd
}

// yield lets the holder of an odd place finish.
func yield() { runtime.Gosched() }

// Root returns the merged root directory.
func (s *Stack) Root() *Dir { return s.root }

// Branches returns all branches, top first. The slice must not be changed.
func (s *Stack) Branches() []*Branch { return s.branches }

// Upper returns the topmost writable branch, or nil.
func (s *Stack) Upper() *Branch {
	if len(s.writable) == 0 {
		return nil
	}
	return s.writable[0]
}

// Writable returns the branches that changes may go to, top first. The slice
// must not be changed.
func (s *Stack) Writable() []*Branch { return s.writable }

// Several reports whether it has to be settled where a change goes: unless the
// only writable branch is the topmost of all.
func (s *Stack) Several() bool {
	return len(s.writable) > 1 || len(s.writable) == 1 && s.writable[0].Index > 0
}

// MaxCachedDirs bounds the descriptors of directories that are kept open. It
// leaves room under the usual limit of 1024 for open files.
const MaxCachedDirs = 256

// Open opens the branches of cfg and makes ready to change the upper. Errors
// carry the class of what is wrong with cfg and name the offending input.
func Open(cfg Config) (*Stack, error) {
	cfg = cfg.absolute()
	s := &Stack{fds: fdcache.New(MaxCachedDirs), config: cfg, exclude: excluded(cfg), chooser: chooser{Policy: cfg.Policy}}
	if err := s.open(cfg); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Stack) open(cfg Config) error {
	if len(cfg.Branches) == 0 {
		return errs.New(errs.Usage, "no branch given: lowerdir= or br= is needed")
	}
	table := readMounts()
	for i, spec := range cfg.Branches {
		b, err := openBranch(i, spec, cfg, table)
		if err != nil {
			return err
		}
		s.branches = append(s.branches, b)
	}
	if err := s.checkOverlaps(cfg); err != nil {
		return err
	}
	for _, b := range s.branches {
		if b.Mode != RW || cfg.ReadOnly {
			continue
		}
		if err := b.openUpper(cfg); err != nil {
			return err
		}
		s.writable = append(s.writable, b)
	}
	s.number()
	s.hideOwn()
	s.root = &Dir{stack: s}
	var err error
	s.root.parts, s.root.floor, err = s.rootParts()
	return err
}

// number gives the branches their ids: the upper is 0, the others are counted
// from the bottom, so that an id survives a new branch on top.
func (s *Stack) number() {
	for _, b := range s.branches {
		b.ID = len(s.branches) - b.Index
		if b == s.Upper() {
			b.ID = 0
		}
	}
	s.nextID = len(s.branches) + 1
}

// rootParts returns what the root directory is made of, all branches down to
// the first opaque root, and that one as the floor.
func (s *Stack) rootParts() (parts []*Part, floor *Branch, err error) {
	for _, b := range s.branches {
		p := &Part{Branch: b, path: "."}
		if b.Writable() {
			p.path = ""
		}
		m, err := whiteout.ReadMarks(b.Root, ".")
		if err != nil {
			return nil, nil, errs.New(errs.Of(err), "branch %s cannot be read: %w", b.Path, err)
		}
		p.xattrWhiteouts.Store(m.XattrWhiteouts)
		parts = append(parts, p)
		if m.Opaque {
			return parts, b, nil
		}
	}
	return parts, nil, nil
}

// RootStat returns the attributes of the root of branch b.
func (b *Branch) RootStat() (sys.Stat, error) { return sys.StatAt(b.Root, "", b.statFlags) }

// Close gives everything back: the work directories are emptied and their
// locks released, all descriptors are closed.
func (s *Stack) Close() error {
	s.fds.Purge()
	var err error
	for _, b := range s.branches {
		if cerr := b.close(); err == nil {
			err = cerr
		}
	}
	s.branches = nil
	return err
}

func (b *Branch) close() (err error) {
	if b.Work != nil {
		err = b.Work.close()
	}
	sys.Close(b.Root)
	return err
}

// DialectOf describes what b is written in, for listings: the recorded format
// or "" when nothing is recorded.
func DialectOf(b *Branch) string {
	f, ok, _ := whiteout.Recorded(b.Root)
	if !ok {
		return ""
	}
	return f.String()
}

// PrepareWhiteout readies d's part in the writable branch b, open at fd, for a
// whiteout inside it.
func (d *Dir) PrepareWhiteout(b *Branch, fd int) error {
	p := d.Part(b)
	if p == nil {
		return unix.ENOENT
	}
	p.noMarks.Store(false)
	if b.Format.Dialect != whiteout.Xattr || p.xattrWhiteouts.Load() {
		return nil
	}
	if err := b.Format.PrepareDir(fd, "."); err != nil {
		return err
	}
	p.xattrWhiteouts.Store(true)
	return nil
}

// MayHaveMarks reports whether .wh. files may lie in d's part in b.
func (d *Dir) MayHaveMarks(b *Branch) bool {
	p := d.Part(b)
	return p != nil && !p.noMarks.Load()
}
