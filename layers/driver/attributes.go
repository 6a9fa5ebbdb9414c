package driver

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

// CopyAttributes gives name in to (to itself when it is empty) what name in from
// has: owner, extended attributes, permissions and times, in the order in which none
// undoes another. What unions and the host's security policy keep there is left out.
// An ordinary user, who cannot give files away, keeps them.
func CopyAttributes(from, to int, name string, st *sys.Stat) error {
	err := sys.ChownAt(to, name, st.UID, st.GID)
	if err != nil && (err != unix.EPERM || os.Geteuid() == 0) {
		return err
	}
	if err := copyXattrs(from, to, name); err != nil {
		return err
	}
	if st.Type() != unix.S_IFLNK {
		if err := sys.ChmodAt(to, name, st.Mode&07777); err != nil {
			return err
		}
	}
	return sys.UtimesAt(to, name, sys.Timespec(st.Atime), sys.Timespec(st.Mtime))
}

func copyXattrs(from, to int, name string) error {
	names, err := sys.ListXattr(from, name)
	if err == unix.EOPNOTSUPP {
		return nil
	}
	if err != nil {
		return err
	}
	for _, attr := range names {
		if !branches.Portable(attr) {
			continue
		}
		v, err := sys.GetXattr(from, name, attr)
		if err == unix.ENODATA {
			continue
		}
		if err == nil {
			err = sys.SetXattr(to, name, attr, v, 0)
		}
		if err != nil && !(os.Geteuid() != 0 && (err == unix.EPERM || err == unix.EACCES)) {
			return err
		}
	}
	return nil
}

// CopyRoot gives the directory to the attributes of the directory from.
func CopyRoot(from, to string) error {
	src, err := sys.OpenRoot(from)
	if err != nil {
		return err
	}
	defer sys.Close(src)
	dst, err := sys.OpenRoot(to)
	if err != nil {
		return err
	}
	defer sys.Close(dst)
	st, err := sys.FStat(src)
	if err != nil {
		return err
	}
	return CopyAttributes(src, dst, "", &st)
}
