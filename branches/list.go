package branches

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Entry is one name of a merged directory.
type Entry struct {
	Name string
	Type uint8   // DT_*, never DT_UNKNOWN
	Ino  uint64  // in its branch
	Part *Part   // the topmost part that has it
	Low  *Branch // for a directory: the topmost lower that has it, nil when none
	Lino uint64  // for a directory: its inode number in Low
}

// List returns the merged content of d, upper names first, without "." and
// "..". Names that are reserved or hidden by a whiteout are not in it.
func (s *Stack) List(d *Dir) ([]Entry, error) {
	m := merge{}
	parts := d.Parts()
	for i, p := range parts {
		entries, fd, err := s.readPart(d, p)
		if err != nil {
			if err == unix.EXDEV {
				continue
			}
			return nil, err
		}
		if len(parts) > 1 && m.seen == nil {
			m.seen = make(map[string]int, len(entries))
		}
		m.add(s, d, p, fd, entries, i == len(parts)-1)
		d.Release(p)
	}
	return m.out, nil
}

// readPart reads one part and leaves its descriptor acquired on success.
func (s *Stack) readPart(d *Dir, p *Part) ([]sys.Dirent, int, error) {
	fd, err := d.Acquire(p)
	if err != nil {
		return nil, -1, err
	}
	entries, err := sys.ReadDirAt(fd)
	if err != nil {
		d.Release(p)
		return nil, -1, err
	}
	if !p.marksRead.Load() {
		p.readMarks(fd)
	}
	return entries, fd, nil
}

// hiddenEntry in merge.seen marks a name that a whiteout hides from here on.
const hiddenEntry = -1

type merge struct {
	out  []Entry
	seen map[string]int // index in out, or hiddenEntry; nil while there is one part only
}

func (m *merge) add(s *Stack, d *Dir, p *Part, fd int, entries []sys.Dirent, last bool) {
	dirPath := p.path
	if dirPath == "" && p.Branch.mountRel != "" {
		dirPath = p.Path(d)
	}
	var hides []string // beside-whiteouts: an entry of the same branch beats them
	marks := false
	for _, e := range entries {
		if whiteout.Reserved(e.Name) {
			marks = true
			if p.Branch.whiteouts && e.Type != unix.DT_DIR && !strings.HasPrefix(e.Name, ".wh..wh.") {
				hides = append(hides, e.Name[len(whiteout.Prefix):])
			}
			continue
		}
		m.entry(s, p, fd, dirPath, e)
	}
	if !marks {
		p.noMarks.Store(true)
	}
	if last || m.seen == nil {
		return
	}
	for _, name := range hides {
		m.hide(name)
	}
}

func (m *merge) hide(name string) {
	if i, ok := m.seen[name]; !ok {
		m.seen[name] = hiddenEntry
	} else if i != hiddenEntry && m.out[i].Type == unix.DT_DIR && m.out[i].Low == nil {
		// A directory beside its own whiteout is opaque: nothing lower is its origin.
		m.seen[name] = hiddenEntry
	}
}

// entry adds one entry of one branch unless it is hidden or known.
func (m *merge) entry(s *Stack, p *Part, fd int, dirPath string, e sys.Dirent) {
	at, known := 0, false
	if m.seen != nil {
		if at, known = m.seen[e.Name]; known && (at == hiddenEntry || m.out[at].Type != unix.DT_DIR || m.out[at].Low != nil) {
			return
		}
	}
	switch m.settle(p, fd, dirPath, &e) {
	case absent:
		return
	case deleted:
		if m.seen != nil && !known {
			m.seen[e.Name] = hiddenEntry
		}
		return
	}
	if known { // a directory of a higher branch: this may be where its identity comes from
		if e.Type == unix.DT_DIR {
			m.out[at].Low, m.out[at].Lino = p.Branch, e.Ino
		}
		return
	}
	out := Entry{Name: e.Name, Type: e.Type, Ino: e.Ino, Part: p}
	if e.Type == unix.DT_DIR && p.Branch != s.upper {
		out.Low, out.Lino = p.Branch, e.Ino
	}
	if m.seen != nil {
		m.seen[e.Name] = len(m.out)
	}
	m.out = append(m.out, out)
}

// What settle says of an entry.
const (
	present = iota
	absent  // not to be shown, and hides nothing
	deleted // a whiteout
)

// settle completes what the directory alone does not tell of e. Only types
// that may be whiteouts cost a stat.
func (m *merge) settle(p *Part, fd int, dirPath string, e *sys.Dirent) int {
	maybe := e.Type == unix.DT_UNKNOWN ||
		p.Branch.whiteouts && e.Type == unix.DT_CHR ||
		p.xattrWhiteouts.Load() && e.Type == unix.DT_REG ||
		p.Branch.HasMounts || p.Branch.mountRel != "" || len(p.Branch.hidden) > 0
	if !maybe {
		return present
	}
	st, err := p.Branch.stat(fd, dirPath, e.Name)
	if err != nil {
		return absent
	}
	e.Type, e.Ino = uint8(st.Type()>>12), st.Ino
	if p.Branch.whiteouts && whiteout.IsFile(fd, e.Name, &st, p.xattrWhiteouts.Load()) {
		return deleted
	}
	return present
}

// Empty reports whether the merged directory d has no entries.
func (s *Stack) Empty(d *Dir) (bool, error) {
	entries, err := s.List(d)
	return len(entries) == 0, err
}
