package sandbox

import (
	"path"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// maxLinks is how many symbolic links may lead to a place, as in path_resolution(7).
const maxLinks = 40

// places are names that were made in the root directory because something is
// mounted on them.
type places struct {
	root int // -1 when there is none
	made []place
}

type place struct {
	parent, name string
	dir          bool
}

// systemPlaces are where init mounts something in any case.
var systemPlaces = []place{{name: "/proc", dir: true}, {name: "/sys", dir: true}, {name: "/dev", dir: true}}

// makePlaces makes the names that are missing. The times of the directories
// above stay, so that nothing has changed when the names are gone.
func (s *Spec) makePlaces() (*places, error) {
	p := &places{root: -1}
	var err error
	if p.root, err = sys.OpenRoot(s.Root); err != nil {
		return p, err
	}
	wanted := append([]place(nil), systemPlaces...)
	for _, f := range hostFiles() {
		wanted = append(wanted, place{name: f})
	}
	for _, v := range s.Volumes {
		st, err := sys.StatAt(unix.AT_FDCWD, v.Host, 0)
		if err != nil {
			return p, errs.New(errs.Of(err), "volume %s: %w", v.Host, err)
		}
		wanted = append(wanted, place{name: v.Path, dir: st.IsDir()})
	}
	for _, w := range wanted {
		if err := p.make(w.name, w.dir, maxLinks); err != nil {
			return p, errs.New(errs.Of(err), "%s in the root directory: %w", w.name, err)
		}
	}
	return p, nil
}

// make makes the directory or empty file name, and those above it.
func (p *places) make(name string, dir bool, links int) error {
	fd, err := sys.OpenInRoot(p.root, name, unix.O_PATH)
	if err == nil {
		defer sys.Close(fd)
		return isOf(fd, dir)
	}
	if err != unix.ENOENT {
		return err
	}
	parent, base := path.Split(path.Clean(name))
	if err := p.make(parent, true, links); err != nil {
		return err
	}
	at, err := sys.OpenInRoot(p.root, parent, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer sys.Close(at)
	if target, err := sys.Readlink(at, base); err == nil { // one that leads nowhere yet
		to := string(target)
		if links == 0 {
			return unix.ELOOP
		}
		if !path.IsAbs(to) {
			to = path.Join(parent, to)
		}
		return p.make(to, dir, links-1)
	}
	err = sys.KeepTimes(at, func() error {
		if dir {
			return sys.Mkdir(at, base, 0755)
		}
		return sys.Mknod(at, base, unix.S_IFREG|0644, 0)
	})
	if err == nil {
		p.made = append(p.made, place{parent, base, dir})
	}
	return err
}

func isOf(fd int, dir bool) error {
	st, err := sys.FStat(fd)
	switch {
	case err != nil:
		return err
	case dir && !st.IsDir():
		return unix.ENOTDIR
	case !dir && st.IsDir():
		return unix.EISDIR
	}
	return nil
}

// remove takes away what was made, the last first, unless something is in it.
func (p *places) remove() {
	if p.root < 0 {
		return
	}
	for i := len(p.made) - 1; i >= 0; i-- {
		m := p.made[i]
		at, err := sys.OpenInRoot(p.root, m.parent, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			continue
		}
		_ = sys.KeepTimes(at, func() error {
			if m.dir {
				return sys.Rmdir(at, m.name)
			}
			if st, err := sys.StatAt(at, m.name, 0); err != nil || st.Size > 0 {
				return err
			}
			return sys.Unlink(at, m.name)
		})
		sys.Close(at)
	}
	sys.Close(p.root)
}
