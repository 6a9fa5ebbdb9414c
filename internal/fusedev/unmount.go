package fusedev

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// Unmount unmounts what is mounted on mountpoint; lazily means that open
// files stay usable and the rest is gone at once.
func Unmount(mountpoint string, lazy bool) error {
	flags, args := 0, []string{"-u"}
	if lazy {
		flags, args = unix.MNT_DETACH, append(args, "-z")
	}
	err := unix.Unmount(mountpoint, flags)
	if err == unix.EPERM {
		err = runHelper(nil, append(args, "--", mountpoint)...)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EINVAL):
		return errs.New(errs.NotFound, "%s: nothing is mounted here", mountpoint)
	case errors.Is(err, syscall.EBUSY):
		return errs.New(errs.Busy, "%s is in use: %w", mountpoint, err)
	}
	return fmt.Errorf("unmounting %s: %w", mountpoint, err)
}

// Remount sets the flags (MS_*) of the mount on mountpoint.
func Remount(mountpoint string, flags uintptr) error {
	switch err := unix.Mount("", mountpoint, "", unix.MS_REMOUNT|flags, ""); err {
	case nil:
		return nil
	case unix.EINVAL:
		return errs.New(errs.NotFound, "%s: nothing is mounted here", mountpoint)
	default:
		return fmt.Errorf("remounting %s: %w", mountpoint, err)
	}
}
