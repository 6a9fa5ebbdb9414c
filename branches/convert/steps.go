package convert

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

const (
	whiteoutAttr = "overlay.whiteout"
	opaqueAttr   = "overlay.opaque"
	redirectAttr = "overlay.redirect"
)

// Kind is why a step is to be taken. The words are part of the output of
// `layerfs check`; package check says what each means.
type Kind string

const (
	LeftoverTemporary   Kind = "leftover-temporary"
	WhiteoutInOpaque    Kind = "whiteout-in-opaque"
	WhiteoutBesideEntry Kind = "whiteout-beside-entry"
	NotMarked           Kind = "xattr-whiteout-not-marked"
	OtherDialect        Kind = "mixed-dialects"
)

// Step is one change of a directory that leaves what the union shows as it is.
type Step struct {
	Kind   Kind
	Name   string // in the directory, "" for the directory itself
	Wrong  string // what is not as the format wants it
	Repair string // what Do does about it
	Do     func() error
}

// steps collects the steps of one view.
type steps struct {
	*View
	to    whiteout.Format
	out   []Step
	spare string // a whiteout of the format in this directory, which others may be links of
}

// Steps returns what has to be done, in this order, so that v is written in
// the format to. The steps of the directories inside come before these.
func (v *View) Steps(to whiteout.Format) []Step {
	s := &steps{View: v, to: to}
	for _, name := range v.Temps {
		s.add(LeftoverTemporary, name, "a temporary of an interrupted change", "removed", func() error { return sys.Unlink(v.FD, name) })
	}
	if v.Opaque {
		s.dropWhiteouts()
	} else {
		s.whiteouts()
	}
	s.marks()
	return s.out
}

func (s *steps) add(kind Kind, name, wrong, repair string, do func() error) {
	s.out = append(s.out, Step{kind, name, wrong, repair, do})
}

// dropWhiteouts clears an opaque directory of whiteouts.
func (s *steps) dropWhiteouts() {
	for _, n := range s.Names {
		switch {
		case n.IsWhiteout():
			s.add(WhiteoutInOpaque, n.Name, "a whiteout in an opaque directory, where it hides nothing", "removed",
				func() error { return s.Remove(n) })
		case n.Beside:
			s.besideEntry(n)
		}
	}
	s.stripUnmarked()
}

// Remove removes the whiteout n, in whatever forms it is there.
func (v *View) Remove(n *Name) error {
	if err := v.removeBeside(n); err != nil || n.At == Absent {
		return err
	}
	return sys.Unlink(v.FD, n.Name)
}

func (v *View) removeBeside(n *Name) error {
	if !n.Beside {
		return nil
	}
	return sys.Unlink(v.FD, whiteout.Prefix+n.Name)
}

// whiteouts brings the whiteouts of a directory into the format.
func (s *steps) whiteouts() {
	s.stripUnmarked()
	if s.to.Dialect == whiteout.Xattr && s.anyWhiteout() && !s.says(opaqueAttr, "x") {
		s.add(OtherDialect, "", "holds whiteouts of another dialect", "marked as a directory with xattr whiteouts", func() error {
			return sys.SetXattr(s.FD, "", string(s.to.NS)+opaqueAttr, []byte("x"), 0)
		})
	}
	for _, n := range s.Names {
		switch {
		case n.IsWhiteout() && !s.asWanted(n):
			s.add(OtherDialect, n.Name, "a whiteout of another dialect than "+s.to.String(), "rewritten", func() error { return s.rewrite(n) })
		case n.At == Entry && n.Beside:
			s.besideEntry(n)
		}
	}
}

// stripUnmarked has empty files that are shown lose the xattr of a whiteout
// where they might become one.
func (s *steps) stripUnmarked() {
	if s.to.Dialect != whiteout.Xattr {
		return
	}
	for _, n := range s.Names {
		if n.Unmarked() {
			s.add(NotMarked, n.Name, "an empty file with the xattr of a whiteout", "loses the xattr", func() error { return s.dropAttrs(n.Name, n.WhAttrs) })
		}
	}
}

func (s *steps) anyWhiteout() bool {
	for _, n := range s.Names {
		if n.IsWhiteout() {
			return true
		}
	}
	return false
}

// says reports whether the directory's attribute in the format's namespace has the value.
func (s *steps) says(attr, value string) bool {
	v, has := s.attrs[string(s.to.NS)+attr]
	return has && v == value
}

// asWanted reports whether the whiteout n is in the format already.
func (s *steps) asWanted(n *Name) bool {
	switch s.to.Dialect {
	case whiteout.AUFS:
		return n.At == Absent
	case whiteout.Overlay:
		return n.At == Device && !n.Beside
	}
	return n.At == Marked && !n.Beside && len(n.WhAttrs) == 1 && n.WhAttrs[0] == string(s.to.NS)+whiteoutAttr
}

// besideEntry takes away the whiteout beside the entry n, which beats it. A
// directory must say by itself that it hides what is below it.
func (s *steps) besideEntry(n *Name) {
	wrong, repair := "a whiteout beside a file of its name, which AUFS refuses to show", "the whiteout is removed"
	if n.Stat.IsDir() {
		wrong, repair = "a whiteout beside a directory of its name, which AUFS refuses to show", "the directory is marked opaque, unless it is, and the whiteout removed"
	}
	s.add(WhiteoutBesideEntry, n.Name, wrong, repair, func() error {
		if n.Stat.IsDir() {
			m, err := whiteout.ReadMarks(s.FD, n.Name)
			if err != nil {
				return err
			}
			if !m.Opaque && m.Redirect == "" && !s.Opaque {
				return fmt.Errorf("the directory could not be marked opaque before")
			}
		}
		return s.removeBeside(n)
	})
}

// rewrite puts a whiteout of the format in the place of n.
func (s *steps) rewrite(n *Name) error {
	if s.to.Dialect == whiteout.AUFS {
		if !n.Beside {
			if err := s.make(whiteout.Prefix + n.Name); err != nil {
				return err
			}
			s.spare = whiteout.Prefix + n.Name
		}
		return sys.Unlink(s.FD, n.Name)
	}
	if s.to.Dialect == whiteout.Xattr && n.At == Marked {
		if err := sys.SetXattr(s.FD, n.Name, string(s.to.NS)+whiteoutAttr, nil, 0); err != nil {
			return err
		}
		var others []string
		for _, a := range n.WhAttrs {
			if a != string(s.to.NS)+whiteoutAttr {
				others = append(others, a)
			}
		}
		if err := s.dropAttrs(n.Name, others); err != nil {
			return err
		}
		return s.removeBeside(n)
	}
	if n.At != Device || s.to.Dialect != whiteout.Overlay {
		if err := s.replace(n.Name); err != nil {
			return err
		}
	}
	return s.removeBeside(n)
}

// replace puts a whiteout that occupies the name there in one step.
// Preconditions: no temporary is left.
func (s *steps) replace(name string) error {
	err := s.make(tmpName)
	if err == nil {
		err = sys.Rename(s.FD, tmpName, s.FD, name, 0)
	}
	if err != nil {
		_ = sys.Unlink(s.FD, tmpName)
		return err
	}
	s.spare = name
	return nil
}

// make makes a whiteout called name, as a link where that goes: they have no
// need of an inode each.
func (s *steps) make(name string) error {
	if s.spare != "" && sys.Link(s.FD, s.spare, s.FD, name) == nil {
		return nil
	}
	return s.to.Make(s.FD, name)
}

func (s *steps) dropAttrs(name string, attrs []string) error {
	for _, a := range attrs {
		if err := sys.RemoveXattr(s.FD, name, a); err != nil && err != unix.ENODATA {
			return err
		}
	}
	return nil
}
