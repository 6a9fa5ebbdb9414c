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

// Stack is an open, ordered list of branches.
type Stack struct {
	branches []*Branch // immutable
	upper    *Branch   // branches[0] when it is writable, else nil. Immutable.
	format   whiteout.Format
	work     *Work // nil without an upper
	fds      *fdcache.Cache
	root     *Dir

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

// Upper returns the writable branch, or nil.
func (s *Stack) Upper() *Branch { return s.upper }

// Work returns the work directory of the upper, or nil.
func (s *Stack) Work() *Work { return s.work }

// Format returns what is written in the upper.
func (s *Stack) Format() whiteout.Format { return s.format }

// MaxCachedDirs bounds the descriptors of directories that are kept open. It
// leaves room under the usual limit of 1024 for open files.
const MaxCachedDirs = 256

// Open opens the branches of cfg and makes ready to change the upper. Errors
// carry the class of what is wrong with cfg and name the offending input.
func Open(cfg Config) (*Stack, error) {
	s := &Stack{fds: fdcache.New(MaxCachedDirs)}
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
	for i, spec := range cfg.Branches {
		b, err := openBranch(i, spec, cfg)
		if err != nil {
			return err
		}
		s.branches = append(s.branches, b)
	}
	if s.branches[0].Mode == RW && !cfg.ReadOnly {
		s.upper = s.branches[0]
	}
	if err := s.checkOverlaps(cfg); err != nil {
		return err
	}
	if s.upper != nil {
		if err := sys.KeepTimes(s.upper.Root, func() error { return s.openUpper(cfg) }); err != nil {
			return err
		}
	}
	s.hideOwn(cfg)
	var err error
	s.root, err = s.mergedRoot()
	return err
}

// mergedRoot builds the root directory: all branches down to the first
// opaque root.
func (s *Stack) mergedRoot() (*Dir, error) {
	d := &Dir{stack: s}
	for _, b := range s.branches {
		p := &Part{Branch: b, path: "."}
		if b == s.upper {
			p.path = ""
		}
		m, err := whiteout.ReadMarks(b.Root, ".")
		if err != nil {
			return nil, errs.New(errs.Of(err), "branch %s cannot be read: %w", b.Path, err)
		}
		p.xattrWhiteouts.Store(m.XattrWhiteouts)
		d.parts = append(d.parts, p)
		if m.Opaque {
			break
		}
	}
	return d, nil
}

// RootStat returns the attributes of the root of branch b.
func (b *Branch) RootStat() (sys.Stat, error) { return sys.StatAt(b.Root, "", b.statFlags) }

// Close gives everything back: the work directory is emptied and its lock
// released, all descriptors are closed.
func (s *Stack) Close() error {
	var err error
	if s.work != nil {
		err = s.work.close()
	}
	s.fds.Purge()
	for _, b := range s.branches {
		sys.Close(b.Root)
	}
	s.branches = nil
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

// PrepareWhiteout readies d's part in the upper, open at fd, for a whiteout
// inside it.
func (s *Stack) PrepareWhiteout(d *Dir, fd int) error {
	p := d.Upper()
	if p == nil {
		return unix.ENOENT
	}
	p.noMarks.Store(false)
	if s.format.Dialect != whiteout.Xattr || p.xattrWhiteouts.Load() {
		return nil
	}
	if err := s.format.PrepareDir(fd, "."); err != nil {
		return err
	}
	p.xattrWhiteouts.Store(true)
	return nil
}

// MayHaveMarks reports whether .wh. files may lie in d's part in the upper.
func (d *Dir) MayHaveMarks() bool {
	p := d.Upper()
	return p != nil && !p.noMarks.Load()
}
