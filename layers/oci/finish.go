package oci

import (
	"errors"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// finish gives the directories their attributes, the innermost first, and
// leaves nothing of the stage.
func (a *applier) finish() error {
	a.forget()
	err := a.finishBelow(".", a.top)
	err = errors.Join(err, sys.RemoveAll(a.root, stageDir), a.finishDir(".", a.top))
	if !a.owned {
		a.warn("this user cannot give files away: what belongs to others in the layer is this user's here")
	}
	return err
}

func (a *applier) finishBelow(path string, n *node) error {
	var failed []error
	for name, k := range n.kids {
		if !k.made || !k.dir {
			continue
		}
		at := path + "/" + name
		failed = append(failed, a.finishBelow(at, k), a.finishDir(at, k))
	}
	return errors.Join(failed...)
}

func (a *applier) finishDir(path string, n *node) error {
	err := a.settle(path, n)
	if err != nil {
		return errs.New(classOf(err), "directory %q: %w", strings.TrimPrefix(path, "./"), err)
	}
	return nil
}

func (a *applier) settle(path string, n *node) error {
	fd, err := sys.OpenDir(a.root, path)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	if n.entry != nil {
		return a.setAttributes(fd, "", n.entry)
	}
	if n.kept == nil {
		return nil
	}
	if err := sys.ChmodAt(fd, "", n.kept.Mode&07777); err != nil {
		return err
	}
	return sys.UtimesAt(fd, "", sys.Timespec(n.kept.Atime), sys.Timespec(n.kept.Mtime))
}
