package convert

import (
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Names of temporaries that a directory of a branch may be left with.
const (
	tmpName       = ".wh..wh.convert"
	tmpOpaqueFile = whiteout.OpaqueFile + ".tmp"
	tmpProbe      = ".wh..wh.probe"
)

// fuseOverlayfsMark is a whiteout device that fuse-overlayfs puts into opaque
// directories besides the marks that it reads.
const fuseOverlayfsMark = ".wh..opq"

// Form is how something is recorded at a name itself.
type Form uint8

const (
	Absent Form = iota
	Entry       // a file or directory that the union shows
	Device      // overlay's whiteout
	Marked      // the xattr dialect's whiteout
)

// Name is one name in a directory, and what the branch says of it.
type Name struct {
	Name    string
	At      Form
	Stat    sys.Stat // of what is at the name, unless Absent
	Beside  bool     // .wh.NAME is there, a regular file
	Bad     bool     // .wh.NAME is there and no regular file: no whiteout
	Content bool     // .wh.NAME counts as a whiteout, but something is written in it
	WhAttrs []string // the whiteout xattrs that an empty file carries
}

// IsWhiteout reports whether NAME is deleted.
func (n *Name) IsWhiteout() bool {
	return n.At == Device || n.At == Marked || n.At == Absent && n.Beside
}

// Unmarked reports whether NAME is an empty file that would be a whiteout if
// its directory said so.
func (n *Name) Unmarked() bool { return n.At == Entry && len(n.WhAttrs) > 0 }

// View is what one directory of a branch records.
type View struct {
	FD     int // O_PATH descriptor of the directory
	Root   bool
	Forced bool // opaque because of a whiteout beside it
	// What the union makes of it: at most one of the two is set.
	Opaque   bool
	Redirect string

	Names    []*Name
	Temps    []string // temporaries of layerfs
	Reserved []string // all other reserved names
	needless []string // marks that say nothing
	attrs    map[string]string
	file     *string // content of .wh..wh..opq, nil without one
	xattrs   bool    // whiteouts with an xattr count
}

// markAttrs are the attributes by which a directory says what it is.
var (
	opaqueAttrs   = []string{"trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque"}
	redirectAttrs = []string{"trusted.overlay.redirect", "user.overlay.redirect"}
	namespaces    = []whiteout.Namespace{whiteout.Trusted, whiteout.User}
)

// Read reads the directory open at fd. root says that it is the root of the
// branch, beside that a whiteout lies beside it.
func Read(fd int, root, beside bool) (*View, error) {
	v := &View{FD: fd, Root: root}
	m, err := whiteout.ReadMarks(fd, ".")
	if err != nil {
		return nil, err
	}
	v.xattrs, v.Redirect = m.XattrWhiteouts, m.Redirect
	v.Opaque = m.Opaque
	if root {
		v.Redirect = "" // the root is not looked up, so nothing follows a redirect of it
	} else if v.Redirect != "" {
		v.Opaque = false
	} else if beside && !v.Opaque {
		v.Opaque, v.Forced = true, true
	}
	if err := v.readMarks(); err != nil {
		return nil, err
	}
	return v, v.readNames()
}

// lacks reports whether err says that there is no such attribute, or that this
// user cannot have it. A mark that could not be read is not an absent one.
func lacks(err error) bool {
	return err == unix.ENODATA || err == unix.EOPNOTSUPP || err == unix.EPERM || err == unix.EACCES
}

func (v *View) readMarks() error {
	v.attrs = map[string]string{}
	for _, list := range [][]string{opaqueAttrs, redirectAttrs} {
		for _, a := range list {
			value, err := sys.GetXattr(v.FD, "", a)
			switch {
			case err == nil:
				v.attrs[a] = string(value)
			case !lacks(err):
				return err
			}
		}
	}
	st, err := sys.StatAt(v.FD, whiteout.OpaqueFile, 0)
	if err == unix.ENOENT || err == nil && !st.IsRegular() {
		return nil
	}
	if err != nil {
		return err
	}
	content := make([]byte, min(st.Size, unix.PathMax))
	if len(content) > 0 {
		fd, err := sys.OpenUntouched(v.FD, whiteout.OpaqueFile, 0)
		if err != nil {
			return err
		}
		defer sys.Close(fd)
		n, err := sys.PRead(fd, content, 0)
		if err != nil {
			return err
		}
		content = content[:n]
	}
	s := string(content)
	v.file = &s
	return nil
}

func (v *View) readNames() error {
	entries, err := sys.ReadDirUntouched(v.FD)
	if err != nil {
		return err
	}
	names := map[string]*Name{}
	get := func(name string) *Name {
		if names[name] == nil {
			names[name] = &Name{Name: name}
		}
		return names[name]
	}
	for _, e := range entries {
		st, err := sys.StatAt(v.FD, e.Name, 0)
		if err == unix.ENOENT {
			continue // a live branch changes
		}
		if err != nil {
			return err
		}
		hidden, of := strings.CutPrefix(e.Name, whiteout.Prefix)
		switch {
		case !of:
			err = v.readName(get(e.Name), st)
		case e.Name == tmpName || e.Name == tmpOpaqueFile || v.Root && e.Name == tmpProbe:
			v.Temps = append(v.Temps, e.Name)
		case e.Name == fuseOverlayfsMark && st.IsWhiteout():
			v.needless = append(v.needless, e.Name)
		case hidden == "" || hidden == "." || hidden == ".." || whiteout.Reserved(hidden):
			v.Reserved = append(v.Reserved, e.Name)
		default:
			n := get(hidden)
			n.Beside, n.Bad, n.Content = st.IsRegular(), !st.IsRegular(), st.IsRegular() && st.Size > 0
		}
		if err != nil {
			return err
		}
	}
	for _, n := range names {
		v.Names = append(v.Names, n)
	}
	sort.Slice(v.Names, func(i, j int) bool { return v.Names[i].Name < v.Names[j].Name })
	sort.Strings(v.Reserved)
	return nil
}

func (v *View) readName(n *Name, st sys.Stat) error {
	n.At, n.Stat = Entry, st
	if st.IsWhiteout() {
		n.At = Device
		return nil
	}
	if !st.IsRegular() || st.Size != 0 {
		return nil
	}
	for _, ns := range namespaces {
		attr := string(ns) + whiteoutAttr
		_, err := sys.GetXattrInto(v.FD, n.Name, attr, nil)
		switch {
		case err == nil:
			n.WhAttrs = append(n.WhAttrs, attr)
		case !lacks(err):
			return err
		}
	}
	is, err := whiteout.IsFile(v.FD, n.Name, &st, v.xattrs)
	if is {
		n.At = Marked
	}
	return err
}

// BadRedirects returns the attributes, or .wh..wh..opq, that hold what is no
// redirect.
func (v *View) BadRedirects() []string {
	var bad []string
	for _, a := range redirectAttrs {
		if p, has := v.attrs[a]; has && !v.Root && whiteout.CleanRedirect(p) == "" {
			bad = append(bad, a)
		}
	}
	if v.file != nil && *v.file != "" && !v.Root && whiteout.CleanRedirect(*v.file) == "" {
		bad = append(bad, whiteout.OpaqueFile)
	}
	return bad
}

// WrittenIn returns the format in which the directory's own mark is written.
func (v *View) WrittenIn() whiteout.Format {
	if v.file != nil {
		return whiteout.Format{Dialect: whiteout.AUFS, NS: whiteout.Trusted}
	}
	for _, ns := range namespaces {
		for _, a := range []string{"overlay.opaque", "overlay.redirect"} {
			if _, has := v.attrs[string(ns)+a]; has {
				return whiteout.Format{Dialect: whiteout.Overlay, NS: ns}
			}
		}
	}
	return whiteout.Format{Dialect: whiteout.AUFS, NS: whiteout.Trusted}
}
