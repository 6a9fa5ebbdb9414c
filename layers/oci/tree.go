package oci

import (
	"archive/tar"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// node is what the layer has to do with one path: whiteouts spare what the
// layer itself has made, in whatever order they come.
type node struct {
	kids    map[string]*node
	made    bool // by the layer: an entry, or a directory on the way to one
	dir     bool
	deleted bool // the layer has a whiteout of it
	skipped bool // left out with a warning
	opaque  bool // the directory is so marked
	// Of a directory: the entry whose attributes it gets in the end; or what it
	// had before it was entered, to be given back.
	entry *tar.Header
	kept  *sys.Stat
}

// find returns the node of a path below n, or nil.
func (n *node) find(path []string) *node {
	for _, c := range path {
		if n = n.kids[c]; n == nil {
			return nil
		}
	}
	return n
}

// place is an open directory of the branch.
type place struct {
	fd int
	*node
}

func (p *place) child(name string) *node {
	k := p.kids[name]
	if k == nil {
		k = &node{}
		if p.kids == nil {
			p.kids = map[string]*node{}
		}
		p.kids[name] = k
	}
	return k
}

// directory opens a directory of the branch for the entry h, and makes those
// on the way that are not there. It stays open until the next call.
func (a *applier) directory(path []string, h *tar.Header) (*place, error) {
	joined := strings.Join(path, "/")
	if a.last != nil && a.lastPath == joined {
		return a.last, nil
	}
	a.forget()
	fd, err := sys.OpenDir(a.root, ".")
	if err != nil {
		return nil, err
	}
	at := &place{fd, a.top}
	for _, name := range path {
		next, err := a.step(at, name, h)
		sys.Close(at.fd)
		if err != nil {
			return nil, err
		}
		at = next
	}
	a.lastPath, a.last = joined, at
	return at, nil
}

// forget closes the directory of the last entry.
func (a *applier) forget() {
	if a.last != nil {
		sys.Close(a.last.fd)
		a.last = nil
	}
}

// step goes from p into the directory name.
func (a *applier) step(p *place, name string, h *tar.Header) (*place, error) {
	if k := p.kids[name]; k != nil && k.made {
		if !k.dir {
			return nil, errs.New(errs.Corrupt, "%q, on the way to it, is no directory in this layer", name)
		}
		fd, err := sys.OpenDir(p.fd, name)
		return &place{fd, k}, err
	}
	st, err := sys.StatAt(p.fd, name, 0)
	if err != nil && err != unix.ENOENT && err != unix.ENAMETOOLONG {
		return nil, err
	}
	if err != nil || !st.IsDir() {
		// The layer has no entry for it, so nobody says how it should be.
		implied := &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0755, ModTime: h.ModTime, Uid: euid, Gid: -1}
		if err := a.makeDir(p, name, implied); err != nil {
			return nil, err
		}
	} else if err := a.adopt(p, name, &st); err != nil {
		return nil, err
	}
	fd, err := sys.OpenDir(p.fd, name)
	return &place{fd, p.kids[name]}, err
}

// adopt takes a directory that was there before as one of the layer's.
func (a *applier) adopt(p *place, name string, st *sys.Stat) error {
	k := p.child(name)
	k.made, k.dir, k.kept = true, true, st
	if euid != 0 && st.Mode&0700 != 0700 {
		if err := sys.ChmodAt(p.fd, name, st.Mode&07777|0700); err != nil {
			return err
		}
	}
	fd, err := sys.OpenDir(p.fd, name)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return a.marksOf(fd, k)
}

func (a *applier) marksOf(fd int, k *node) error {
	if a.whole {
		return nil
	}
	m, err := whiteout.ReadMarks(fd, ".")
	k.opaque = m.Opaque
	return err
}

// makeDir puts a directory at name in p, or gives the one that is there the
// attributes of h.
func (a *applier) makeDir(p *place, name string, h *tar.Header) error {
	st, err := sys.StatAt(p.fd, name, 0)
	there := err == nil && st.IsDir()
	if err != nil && err != unix.ENOENT && err != unix.ENAMETOOLONG {
		return err
	}
	if there {
		if k := p.kids[name]; k == nil || !k.made {
			if err := a.adopt(p, name, &st); err != nil {
				return err
			}
		}
		k := p.child(name)
		k.entry, k.kept = h, nil
		return nil
	}
	hides := err == nil && !p.child(name).made // a whiteout, or what would hide a lower directory
	if beside, err := whiteout.HasAUFS(p.fd, name); beside || err != nil {
		if err != nil {
			return err
		}
		hides = true
	}
	tmp := a.temporary()
	if err := sys.Mkdir(a.stage, tmp, 0700); err != nil {
		return err
	}
	if hides || p.child(name).deleted {
		if err := a.setOpaque(a.stage, tmp); err != nil {
			return err
		}
		p.child(name).opaque = true
	}
	if err := a.replace(p, name, tmp, true); err != nil {
		return err
	}
	p.kids[name].entry = h
	return nil
}

// replace moves the finished temporary tmp to name in p.
func (a *applier) replace(p *place, name, tmp string, dir bool) error {
	st, err := sys.StatAt(p.fd, name, 0)
	if err != nil && err != unix.ENOENT {
		return err
	}
	if err == nil && (dir || st.IsDir()) {
		a.forgetUnless(p)
		if err := sys.RemoveAll(p.fd, name); err != nil {
			return err
		}
	}
	if err := sys.Rename(a.stage, tmp, p.fd, name, 0); err != nil {
		return err
	}
	_ = sys.Unlink(a.stage, tmp) // rename does nothing when both are names of one file
	old := p.child(name)
	p.kids[name] = &node{made: true, dir: dir, deleted: old.deleted, opaque: dir && old.opaque}
	return a.uncover(p.fd, name)
}

// forgetUnless closes the last directory when it is not p: it may be about to go.
func (a *applier) forgetUnless(p *place) {
	if a.last != p {
		a.forget()
	}
}

// uncover removes the whiteout beside name: an entry has taken its place.
func (a *applier) uncover(fd int, name string) error {
	if len(name)+len(whiteout.Prefix) > unix.NAME_MAX {
		return nil
	}
	beside, err := whiteout.HasAUFS(fd, name)
	if beside {
		err = sys.Unlink(fd, whiteout.Prefix+name)
	}
	return err
}

// delete removes what was at name in p before the layer, and records that the
// branches below have it no more.
func (a *applier) delete(p *place, name string) error {
	k := p.child(name)
	if k.deleted {
		return nil
	}
	k.deleted = true
	if k.made {
		if !k.dir || k.opaque {
			return nil
		}
		fd, err := sys.OpenDir(p.fd, name)
		if err != nil {
			return err
		}
		defer sys.Close(fd)
		return a.hideBelow(&place{fd, k})
	}
	a.forgetUnless(p)
	if err := sys.RemoveAll(p.fd, name); err != nil && err != unix.ENAMETOOLONG {
		return err
	}
	if p.opaque || a.whole {
		return nil // nothing lower shows in it
	}
	return a.record(p, name)
}

// record puts a whiteout of name into p.
func (a *applier) record(p *place, name string) error {
	at := a.format.Name(name)
	if len(at) > unix.NAME_MAX {
		return errs.New(errs.Unsupported, "the whiteout of a name of %d bytes does not fit into dialect %s", len(name), a.format.Dialect)
	}
	if err := a.format.PrepareDir(p.fd, "."); err != nil {
		return err
	}
	tmp := a.temporary()
	if err := a.format.Make(a.stage, tmp); err != nil {
		return err
	}
	return sys.Rename(a.stage, tmp, p.fd, at, 0)
}

// hideBelow makes the directory p hide what the branches below have in it, and
// removes what was in it before the layer.
func (a *applier) hideBelow(p *place) error {
	if err := a.purge(p); err != nil {
		return err
	}
	if p.opaque {
		return nil
	}
	p.opaque = true
	return a.setOpaque(p.fd, ".")
}

func (a *applier) setOpaque(dirfd int, name string) error {
	if a.whole {
		return nil
	}
	return a.format.SetOpaque(dirfd, name)
}

// purge removes what is in p and not of the layer.
func (a *applier) purge(p *place) error {
	entries, err := sys.ReadDirAt(p.fd)
	if err != nil {
		return err
	}
	for _, e := range entries {
		k := p.kids[e.Name]
		switch {
		case strings.HasPrefix(e.Name, whiteout.Prefix+whiteout.Prefix): // records of the directory itself
		case k == nil || !k.made:
			err = sys.RemoveAll(p.fd, e.Name)
		case k.dir:
			err = a.purgeIn(p, e.Name, k)
		}
		if err != nil {
			return fmt.Errorf("removing %q: %w", e.Name, err)
		}
	}
	return nil
}

func (a *applier) purgeIn(p *place, name string, k *node) error {
	fd, err := sys.OpenDir(p.fd, name)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return a.purge(&place{fd, k})
}
