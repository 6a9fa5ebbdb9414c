package kernelbackend

import (
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// directory is an open directory.
type directory struct {
	fd   int    // O_PATH, except of the work directory, which is locked
	path string // real
}

// mounting is an overlay whose directories are open.
type mounting struct {
	Overlay
	lowers      []*directory
	upper, work *directory // nil when the mount is read-only
	point       *directory
	empty       int  // a file system with an empty lower, mounted only while it is open; -1 for none
	fresh       bool // the upper was not recorded before
}

// open opens the directories of o.
func open(o Overlay) (m *mounting, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	m = &mounting{Overlay: o, empty: -1}
	lowers := o.Lowers
	if o.ReadOnly && o.Upper != "" {
		lowers = append([]string{o.Upper}, lowers...)
	}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	for _, l := range lowers {
		d, err := openDirectory("lower", l, unix.O_PATH)
		if err != nil {
			return m, err
		}
		m.lowers = append(m.lowers, d)
	}
	if o.Upper != "" && !o.ReadOnly {
		if m.upper, err = openDirectory("upper", o.Upper, unix.O_PATH); err != nil {
			return m, err
		}
		if m.work, err = openDirectory("work directory", o.Work, unix.O_RDONLY); err != nil {
			return m, err
		}
	}
	m.point, err = openDirectory("mountpoint", o.Mountpoint, unix.O_PATH)
	return m, err
}

func openDirectory(what, path string, flags int) (*directory, error) {
	fd, err := unix.Open(path, flags|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	switch {
	case err == unix.ENOTDIR:
		return nil, errs.New(errs.Usage, "%s %s is not a directory", what, path)
	case err != nil:
		return nil, errs.New(errs.Of(err), "%s %s: %w", what, path, err)
	}
	real, err := sys.PathOf(fd)
	if err != nil {
		sys.Close(fd)
		return nil, errs.New(errs.Failed, "%s %s: %w", what, path, err)
	}
	return &directory{fd, real}, nil
}

func (m *mounting) close() {
	for _, d := range slices.Concat(m.branches(), []*directory{m.work, m.point}) {
		if d != nil {
			sys.Close(d.fd)
		}
	}
	if m.empty >= 0 {
		sys.Close(m.empty)
	}
}

// branches are the upper, if any, and the lowers.
func (m *mounting) branches() []*directory {
	if m.upper == nil {
		return m.lowers
	}
	return append([]*directory{m.upper}, m.lowers...)
}

// checkPlaces refuses what package branches refuses and the kernel does not.
func (m *mounting) checkPlaces() error {
	for _, b := range m.branches() {
		if b.path != m.point.path && within(b.path, m.point.path) {
			return errs.New(errs.Usage, "branch %s lies inside the mountpoint %s: the mount would cover it", b.path, m.point.path)
		}
	}
	if m.upper == nil {
		return nil
	}
	for what, d := range map[string]*directory{"upper": m.upper, "work directory": m.work} {
		if d.path != m.point.path && within(m.point.path, d.path) {
			return errs.New(errs.Usage, "mountpoint %s lies inside the %s %s: mount it somewhere else", m.point.path, what, d.path)
		}
	}
	return nil
}

// within reports whether path is dir or lies below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
