package kernelbackend

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// noRedirects refuses an upper with user. attributes in which the FUSE union has
// redirected a directory: the kernel would answer EPERM for it. Every directory
// of an upper in which the union may have written is looked at.
func (m *mounting) noRedirects() error {
	if !m.userXattr() {
		return nil
	}
	has, err := redirectsBelow(m.upper.fd, ".")
	switch {
	case err != nil:
		return errs.New(errs.Of(err), "upper %s cannot be read: %w", m.upper.path, err)
	case has:
		return errs.New(errs.Corrupt, "upper %s has renamed directories, which the kernel's overlay does not follow with user. attributes: mount it with backend=fuse", m.upper.path)
	}
	return nil
}

func redirectsBelow(dirfd int, name string) (bool, error) {
	m, err := whiteout.ReadMarks(dirfd, name)
	if err != nil || m.Redirect != "" {
		return true, err
	}
	fd, err := sys.OpenIn(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == unix.EXDEV || err == unix.ENOTDIR || err == unix.ELOOP { // a mount, or no directory
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer sys.Close(fd)
	entries, err := sys.ReadDir(fd)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.Type == unix.DT_DIR || e.Type == unix.DT_UNKNOWN {
			if has, err := redirectsBelow(fd, e.Name); has || err != nil {
				return has, err
			}
		}
	}
	return false, nil
}
