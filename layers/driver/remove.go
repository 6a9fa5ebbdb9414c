package driver

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// RemoveAll removes name in the directory home and all below it, through no
// symbolic link and across no mount. What is not there is no error.
func RemoveAll(home, name string) error {
	fd, err := sys.OpenRoot(home)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", home, err)
	}
	defer sys.Close(fd)
	if err := sys.RemoveAll(fd, name); err != nil {
		if err == unix.EXDEV {
			return errs.New(errs.Busy, "something is mounted inside %s/%s: unmount it first", home, name)
		}
		return fmt.Errorf("removing %s/%s: %w", home, name, err)
	}
	return nil
}
