package sys

import (
	"golang.org/x/sys/unix"
)

// OpenInRoot opens path as it is seen by somebody whose root directory is
// rootfd: ".." and absolute symbolic links do not lead out. Mounts are crossed.
func OpenInRoot(rootfd int, path string, flags int) (fd int, err error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	err = retry("openat2", func() (err error) {
		fd, err = unix.Openat2(rootfd, path, &how)
		if err == unix.EAGAIN {
			return unix.EINTR
		}
		return err
	})
	return fd, err
}

// BindOn shows the file or directory source, with all that is mounted below
// it, on what is open at fd.
func BindOn(fd int, source string) error {
	return MountOn(fd, source, "", unix.MS_BIND|unix.MS_REC, "")
}

// Forbid adds attrs (MOUNT_ATTR_*) to the mount on path and to all below it. What
// is mounted on an open directory is not what is open: path has to be looked up.
func Forbid(path string, attrs uint64) error {
	return retry("mount_setattr", func() error {
		return unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attrs})
	})
}

// SeparateMounts keeps mounts of this mount namespace from others, and those of
// others, but for unmounts, from this one.
func SeparateMounts() error {
	return retry("mount", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "") })
}

// ChangeRoot makes the mount on root the root directory of this mount
// namespace and of this process, and lets go of what was there before.
func ChangeRoot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // pivot_root(2), "pivot_root(\".\", \".\")"
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}
