package kernelbackend

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// HasRedirects reports whether the FUSE union may have redirected a directory in
// the upper of o, and the kernel would answer EPERM for it: it does not follow
// redirects in user. attributes. Every directory of such an upper is looked at.
func (o *Overlay) HasRedirects() (bool, error) {
	if o.Upper == "" || !o.userXattr() {
		return false, nil
	}
	if !exists(o.Work + "/" + records.KeepDir) {
		return false, nil // the union has never written here
	}
	root, err := sys.OpenRoot(o.Upper)
	if err != nil {
		return false, err
	}
	defer sys.Close(root)
	return redirectsBelow(root, ".")
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
