package check

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/branches/convert"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// directory is the check of one directory, after those inside.
type directory struct {
	*checker
	v    *convert.View
	path string
	low  *branches.Dir // what the lowers have below it
}

func (d *directory) check() error {
	d.reserved()
	d.noWhiteouts()
	d.redirects()
	changed := d.unmarked()
	changed = d.needless() || changed
	if changed {
		v, err := convert.Read(d.v.FD, d.v.Root, d.v.Forced)
		if err != nil {
			return fmt.Errorf("%s: %w", shown(d.path), err)
		}
		d.v = v
	}
	if d.dangling() {
		return nil // nothing is left to be told apart
	}
	d.steps()
	return nil
}

func (d *directory) at(name string) string {
	if name == "" {
		return d.path
	}
	return convert.Join(d.path, name)
}

// noWhiteouts reports what has the name of a whiteout and is something else.
func (d *directory) noWhiteouts() {
	for _, n := range d.v.Names {
		switch name := whiteout.Prefix + n.Name; {
		case n.Bad:
			d.found("bad-whiteout", d.at(name), "has the name of a whiteout but is no regular file, so it is hidden and hides nothing: rename or remove it", "", nil)
		case n.Content:
			d.found("bad-whiteout", d.at(name), "a whiteout by its name, but there is something in it: rename or empty it", "", nil)
		}
	}
}

func (d *directory) redirects() {
	for _, where := range d.v.BadRedirects() {
		d.found("bad-redirect", d.path, fmt.Sprintf("what %s says is no redirect", where), "", nil)
	}
}

// unmarked deals with empty files that were meant as whiteouts.
func (d *directory) unmarked() (changed bool) {
	for _, n := range d.v.Names {
		if !n.Unmarked() {
			continue
		}
		repair, mend := "the directory is marked", func() error {
			ns, _, _ := strings.Cut(n.WhAttrs[0], ".")
			return sys.SetXattr(d.v.FD, "", ns+".overlay.opaque", []byte("x"), 0)
		}
		if d.v.Opaque {
			repair, mend = "removed, since nothing is below", func() error { return sys.Unlink(d.v.FD, n.Name) }
		}
		if d.found(string(convert.NotMarked), d.at(n.Name), "a whiteout with an xattr in a directory that is not marked for them, so it shows as an empty file", repair, mend) {
			changed = true
		}
	}
	return changed
}

// needless finds whiteouts of what no lower has.
func (d *directory) needless() (changed bool) {
	if d.checker.low == nil || d.v.Opaque {
		return false
	}
	for _, n := range d.v.Names {
		if !n.IsWhiteout() || n.Content {
			continue
		}
		if d.low != nil && len(n.Name) <= unix.NAME_MAX {
			res, err := d.checker.low.Lookup(d.low, n.Name)
			if err != nil || res.Kind != branches.NotFound {
				continue
			}
		}
		if d.found("needless-whiteout", d.at(n.Name), "a whiteout of what no branch below has", "removed", func() error { return d.v.Remove(n) }) {
			changed = true
		}
	}
	return changed
}

// dangling finds a redirect to nowhere. It reports whether the directory has
// been made opaque instead.
func (d *directory) dangling() bool {
	if d.v.Redirect == "" || d.checker.low == nil || d.low != nil {
		return false
	}
	f := d.to
	if !d.was.Known {
		f = d.v.WrittenIn()
	}
	return d.found("dangling-redirect", d.path, fmt.Sprintf("a redirect to %s, which is no directory in the branches below", d.v.Redirect), "marked opaque", func() error {
		opaque := *d.v
		opaque.Redirect, opaque.Opaque = "", true
		for _, s := range opaque.Steps(f) {
			if err := s.Do(); err != nil {
				return err
			}
		}
		return nil
	})
}

// errBefore is why a step is not taken that relies on another.
var errBefore = errors.New("what has to be done before it failed")

// steps finds what is not in the recorded format. Without a record no
// dialect is wrong, and a redirect that makes no sense is left for people to read.
func (d *directory) steps() {
	anyDialect := !d.was.Known || d.was.UnderWay || len(d.v.BadRedirects()) > 0
	failed := false
	for _, s := range d.v.Steps(d.to) {
		if s.Kind == convert.NotMarked || s.Kind == convert.OtherDialect && anyDialect || d.hasContent(s.Name) {
			continue
		}
		do := s.Do
		if failed {
			do = func() error { return errBefore }
		}
		if !d.found(string(s.Kind), d.at(s.Name), s.Wrong, s.Repair, do) {
			failed = true
		}
	}
}

// hasContent reports whether the whiteout of name must not be touched.
func (d *directory) hasContent(name string) bool {
	for _, n := range d.v.Names {
		if n.Name == name {
			return n.Content
		}
	}
	return false
}
