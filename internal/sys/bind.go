package sys

import "golang.org/x/sys/unix"

// Bind mounts the directory from, an absolute path of our own, on the directory at.
func Bind(from, at string, readOnly bool) error {
	err := retry("mount", func() error { return unix.Mount(from, at, "", unix.MS_BIND, "") })
	if err != nil || !readOnly {
		return err
	}
	err = retry("mount", func() error {
		return unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	})
	if err != nil {
		_ = unix.Unmount(at, unix.MNT_DETACH)
	}
	return err
}
