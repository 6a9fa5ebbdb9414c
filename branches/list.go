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
		if (len(parts) > 1 || s.config.ShowMarks) && m.seen == nil {
			m.seen = make(map[string]int, len(entries))
		}
		err = m.add(s, d, p, fd, entries, i == len(parts)-1)
		d.Release(p)
		if err != nil {
			return nil, err
		}
	}
	return m.out, nil
}

// readPart reads one part and leaves its descriptor acquired on success.
func (s *Stack) readPart(d *Dir, p *Part) ([]sys.Dirent, int, error) {
	fd, err := d.Acquire(p)
	if err != nil {
		return nil, -1, err
	}
	read := sys.ReadDirUntouched
	if p.Branch.Writable() {
		read = sys.ReadDirAt
	}
	entries, err := read(fd)
	if err != nil {
		d.Release(p)
		return nil, -1, err
	}
	if !p.marksRead.Load() {
		if err := p.readMarks(fd); err != nil {
			d.Release(p)
			return nil, -1, err
		}
	}
	return entries, fd, nil
}

// hiddenEntry in merge.seen marks a name that a whiteout hides from here on.
const hiddenEntry = -1

type merge struct {
	out  []Entry
	seen map[string]int // index in out, or hiddenEntry; nil while there is one part only
}

func (m *merge) add(s *Stack, d *Dir, p *Part, fd int, entries []sys.Dirent, last bool) error {
	dirPath := p.path
	if dirPath == "" && p.Branch.mountRel != "" {
		dirPath = p.Path(d)
	}
	var hides []string // beside-whiteouts: an entry of the same branch beats them
	marks := false
	for _, e := range entries {
		if whiteout.Reserved(e.Name) {
			marks = true
			if s.config.ShowMarks {
				defer m.show(p, e) // behind the entries, some of which count more
			}
			if name := HiddenBy(e.Name); p.Branch.whiteouts && e.Type != unix.DT_DIR && name != "" {
				hides = append(hides, name)
			}
			continue
		}
		if err := m.entry(s, p, fd, dirPath, e); err != nil {
			return err
		}
	}
	if !marks {
		p.noMarks.Store(true)
	}
	if last || m.seen == nil {
		return nil
	}
	for _, name := range hides {
		m.hide(name)
	}
	return nil
}

// show adds the mark e of p to what is listed: "aufs will show you the name of
// whiteouts with keeping its feature to hide the lowers" (aufs(5), shwh). One
// that hides nothing because the name is there is not shown.
func (m *merge) show(p *Part, e sys.Dirent) {
	name := HiddenBy(e.Name)
	if !p.Branch.whiteouts || e.Type == unix.DT_DIR || name == "" && e.Name != whiteout.OpaqueFile {
		return
	}
	if i, ok := m.seen[name]; ok && i != hiddenEntry {
		return
	}
	if _, ok := m.seen[e.Name]; !ok {
		m.seen[e.Name] = len(m.out)
		m.out = append(m.out, Entry{Name: e.Name, Type: e.Type, Ino: e.Ino, Part: p})
	}
}

// HiddenBy returns the name that the entry called name has or, being a whiteout
// beside it, hides; "" for what is the union's own.
func HiddenBy(name string) string {
	if strings.HasPrefix(name, whiteout.Prefix+whiteout.Prefix) {
		return ""
	}
	return strings.TrimPrefix(name, whiteout.Prefix)
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
func (m *merge) entry(s *Stack, p *Part, fd int, dirPath string, e sys.Dirent) error {
	at, known := 0, false
	if m.seen != nil {
		if at, known = m.seen[e.Name]; known && (at == hiddenEntry || m.out[at].Type != unix.DT_DIR || m.out[at].Low != nil) {
			return nil
		}
	}
	what, err := m.settle(p, fd, dirPath, &e)
	switch {
	case err != nil || what == absent:
		return err
	case what == deleted:
		if m.seen != nil && !known {
			m.seen[e.Name] = hiddenEntry
			if s.config.ShowMarks {
				m.out = append(m.out, Entry{Name: e.Name, Type: e.Type, Ino: e.Ino, Part: p})
			}
		}
		return nil
	}
	if known { // a directory of a higher branch: this may be where its identity comes from
		if e.Type == unix.DT_DIR && !p.Branch.Writable() {
			m.out[at].Low, m.out[at].Lino = p.Branch, e.Ino
		}
		return nil
	}
	out := Entry{Name: e.Name, Type: e.Type, Ino: e.Ino, Part: p}
	if e.Type == unix.DT_DIR && !p.Branch.Writable() {
		out.Low, out.Lino = p.Branch, e.Ino
	}
	if m.seen != nil {
		m.seen[e.Name] = len(m.out)
	}
	m.out = append(m.out, out)
	return nil
}

// What settle says of an entry.
const (
	present = iota
	absent  // not to be shown, and hides nothing
	deleted // a whiteout
)

// settle completes what the directory alone does not tell of e. Only types
// that may be whiteouts cost a stat.
func (m *merge) settle(p *Part, fd int, dirPath string, e *sys.Dirent) (int, error) {
	maybe := e.Type == unix.DT_UNKNOWN ||
		p.Branch.whiteouts && e.Type == unix.DT_CHR ||
		p.xattrWhiteouts.Load() && e.Type == unix.DT_REG ||
		p.Branch.HasMounts || p.Branch.mountRel != "" || len(p.Branch.hidden) > 0
	if !maybe {
		return present, nil
	}
	st, err := p.Branch.stat(fd, dirPath, e.Name)
	if err == unix.ENOENT {
		return absent, nil
	}
	if err != nil {
		return absent, err
	}
	e.Type, e.Ino = uint8(st.Type()>>12), st.Ino
	if p.Branch.whiteouts {
		if is, err := whiteout.IsFile(fd, e.Name, &st, p.xattrWhiteouts.Load()); is || err != nil {
			return deleted, err
		}
	}
	return present, nil
}

// Empty reports whether the merged directory d has no entries.
func (s *Stack) Empty(d *Dir) (bool, error) {
	entries, err := s.List(d)
	return len(entries) == 0, err
}
