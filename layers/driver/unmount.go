package driver

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// Unmount unmounts what the kernel has mounted on at. Nothing there is no error.
func Unmount(at string) error {
	switch err := sys.Unmount(at, 0); err {
	case nil, unix.EINVAL, unix.ENOENT:
		return nil
	case unix.EBUSY:
		return errs.New(errs.Busy, "%s is in use: %w", at, err)
	default:
		return fmt.Errorf("unmounting %s: %w", at, err)
	}
}
