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

// Unmount unmounts what is mounted on the directory at; EINVAL when nothing is.
func Unmount(at string) error {
	return retry("umount2", func() error { return unix.Unmount(at, unix.UMOUNT_NOFOLLOW) })
}
