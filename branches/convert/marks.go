package convert

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// marks brings what the directory says of itself into the format: the wanted
// mark first, then the others go, those that would count while another is
// there before that other.
func (s *steps) marks() {
	kind, wrong, repair := OtherDialect, "marks of another dialect than "+s.to.String(), "written in that, too"
	if s.Forced {
		kind, wrong, repair = WhiteoutBesideEntry, "opaque only by a whiteout beside it", "marked opaque"
	}
	if do := s.ownMark(); do != nil {
		s.add(kind, "", wrong, repair, do)
	}
	var attrs []string
	for _, list := range [][]string{opaqueAttrs, redirectAttrs} {
		for _, a := range list {
			if _, has := s.attrs[a]; has && !s.keeps(a) {
				attrs = append(attrs, a)
			}
		}
	}
	if len(attrs) > 0 {
		s.add(OtherDialect, "", "marks that do not belong to "+s.to.String(), "removed", func() error { return s.dropAttrs("", attrs) })
	}
	for _, name := range s.needless {
		s.add(OtherDialect, name, "a mark of fuse-overlayfs, which nothing reads", "removed", func() error { return sys.Unlink(s.FD, name) })
	}
	if s.file != nil && !(s.to.Dialect == whiteout.AUFS && (s.Opaque || s.Redirect != "")) {
		s.add(OtherDialect, whiteout.OpaqueFile, "a mark of another dialect than "+s.to.String(), "removed", func() error {
			return sys.Unlink(s.FD, whiteout.OpaqueFile)
		})
	}
}

// ownMark returns what writes the mark that the directory should have, nil
// when it has it or needs none.
func (s *steps) ownMark() func() error {
	switch {
	case !s.Opaque && s.Redirect == "":
		return nil
	case s.to.Dialect == whiteout.AUFS:
		if s.file != nil && *s.file == s.Redirect {
			return nil
		}
		return s.writeFile
	case s.Opaque:
		if s.says(opaqueAttr, "y") {
			return nil
		}
		return func() error { return s.to.SetOpaque(s.FD, "") }
	default:
		if s.says(redirectAttr, s.Redirect) {
			return nil
		}
		return func() error { return s.to.SetRedirect(s.FD, "", s.Redirect) }
	}
}

// writeFile writes .wh..wh..opq, for good before anything that says the same
// goes: a power cut may take the content of a new file though not its name.
func (s *steps) writeFile() error {
	if err := s.to.SetRedirect(s.FD, ".", s.Redirect); err != nil { // opaque when it is empty
		return err
	}
	fd, err := sys.OpenIn(s.FD, whiteout.OpaqueFile, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return sys.Fsync(fd)
}

// keeps reports whether the attribute attr belongs to the directory.
func (s *steps) keeps(attr string) bool {
	if s.to.Dialect == whiteout.AUFS {
		return false
	}
	switch attr {
	case string(s.to.NS) + redirectAttr:
		return s.Redirect != ""
	case string(s.to.NS) + opaqueAttr:
		return s.Opaque || s.to.Dialect == whiteout.Xattr && (s.anyWhiteout() || s.attrs[attr] == "x")
	}
	return false
}
