package fs

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// moveOnDisk renames from to to in the upper and leaves a whiteout at from
// where a lower would show through.
func moveOnDisk(on *branches.Branch, from, to *side) error {
	move := func(do func() error) error { return do() }
	if from.n.isDir() {
		move = func(do func() error) error {
			return from.n.dir.tree.Move(on, to.parent.dir.tree, to.name, do)
		}
	}
	if from.covers {
		if err := from.parent.dir.tree.PrepareWhiteout(on, from.fd); err != nil {
			return err
		}
	}
	over, err := whiteoutAt(to)
	if err != nil {
		return err
	}
	switch {
	case !on.Format.InPlace():
		if from.covers {
			if err := hideBeside(on, from); err != nil {
				return err
			}
		}
		err = move(func() error { return sys.Rename(from.fd, from.name, to.fd, to.name, 0) })
	case over && from.n.isDir():
		err = swapWithWhiteout(from, to, move)
	case from.covers && on.Format.Dialect == whiteout.Overlay:
		err = move(func() error { return sys.Rename(from.fd, from.name, to.fd, to.name, sys.RenameWhiteout) })
	case from.covers:
		err = moveLeavingXattrWhiteout(on, from, to, move)
	default:
		err = move(func() error { return sys.Rename(from.fd, from.name, to.fd, to.name, 0) })
	}
	if err == nil && to.parent.dir.tree.MayHaveMarks(on) && len(to.name)+len(whiteout.Prefix) <= unix.NAME_MAX {
		unhideBeside(to.fd, to.name)
	}
	return err
}

// whiteoutAt reports whether a whiteout occupies the name of an unseen side.
func whiteoutAt(s *side) (bool, error) {
	if s.n != nil {
		return false, nil
	}
	_, err := sys.StatAt(s.fd, s.name, 0)
	if err == unix.ENOENT {
		return false, nil
	}
	return err == nil, err
}

// swapWithWhiteout moves a directory over a whiteout, which a rename cannot
// replace: they change places, and the whiteout stays if one is needed there.
func swapWithWhiteout(from, to *side, move func(func() error) error) error {
	err := move(func() error { return sys.Rename(from.fd, from.name, to.fd, to.name, sys.RenameExchange) })
	if err == nil && !from.covers {
		_ = sys.Unlink(from.fd, from.name) // a whiteout that hides nothing
	}
	return err
}

// moveLeavingXattrWhiteout is RENAME_WHITEOUT for the xattr dialect.
func moveLeavingXattrWhiteout(on *branches.Branch, from, to *side, move func(func() error) error) error {
	if from.n.isDir() && to.n == nil {
		if err := to.parent.dir.tree.PrepareWhiteout(on, to.fd); err != nil {
			return err
		}
		if err := on.Work.LinkWhiteout(on.Format, to.fd, to.name); err != nil {
			return err
		}
		err := swapWithWhiteout(from, to, move)
		if err != nil {
			_ = sys.Unlink(to.fd, to.name)
		}
		return err
	}
	// No single call does it. For a moment a file has both names, or the victim
	// of a directory, which is an empty one, has the old name.
	moving, err := sys.StatAt(from.fd, from.name, 0)
	if err != nil {
		return err
	}
	left := moving
	if from.n.isDir() {
		if left, err = sys.StatAt(to.fd, to.name, 0); err != nil {
			return err
		}
	}
	done, err := noteRename(on.Work, from, to, left.Ino, moving.Ino)
	if err != nil {
		return err
	}
	defer done()
	if !from.n.isDir() {
		return addName(on, from, to, func() error {
			return replaceByWhiteout(on, location{from.fd, from.name, noRelease}, false)
		})
	}
	exchange := func() error { return sys.Rename(from.fd, from.name, to.fd, to.name, sys.RenameExchange) }
	if err := move(exchange); err != nil {
		return err
	}
	err = replaceByWhiteout(on, location{from.fd, from.name, noRelease}, true)
	if err != nil {
		_ = from.n.dir.tree.Move(on, from.parent.dir.tree, from.name, exchange)
	}
	return err
}

// addName gives what is at from the name to as well, then calls then. If that
// fails, to is what it was.
func addName(on *branches.Branch, from, to *side, then func() error) error {
	tmp := on.Work.Name()
	if err := sys.Link(from.fd, from.name, on.Work.Tmp, tmp); err != nil {
		return err
	}
	defer on.Work.Discard(tmp)
	var flags uint = sys.RenameExchange
	err := sys.Rename(on.Work.Tmp, tmp, to.fd, to.name, flags)
	if err == unix.ENOENT {
		flags = sys.RenameNoReplace
		err = sys.Rename(on.Work.Tmp, tmp, to.fd, to.name, flags)
	}
	if err != nil {
		return err
	}
	if err = then(); err != nil {
		_ = sys.Rename(to.fd, to.name, on.Work.Tmp, tmp, flags)
	}
	return err
}
