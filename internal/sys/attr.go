package sys

import (
	"golang.org/x/sys/unix"
)

// ChmodAt sets the permissions of name in dirfd (of dirfd itself when name
// is empty), not following it; EOPNOTSUPP for a symbolic link.
func ChmodAt(dirfd int, name string, mode uint32) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err := retry("fchmodat", func() error { return unix.Fchmodat(dirfd, name, mode, flags) })
	if err != unix.ENOSYS && err != unix.EOPNOTSUPP {
		return err
	}
	// Before fchmodat2 (Linux 6.6): by a handle, so that nothing is followed.
	fd := dirfd
	if name != "" {
		if fd, err = OpenIn(dirfd, name, unix.O_PATH, 0); err != nil {
			return err
		}
		defer Close(fd)
	}
	st, err := FStat(fd)
	if err != nil {
		return err
	}
	if st.Type() == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return retry("chmod", func() error { return unix.Chmod(ProcPath(fd), mode) })
}

// ChownAt sets the owner of name in dirfd (dirfd itself when name is
// empty), not following it; ^uint32(0) leaves an id alone.
func ChownAt(dirfd int, name string, uid, gid uint32) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return retry("fchownat", func() error { return unix.Fchownat(dirfd, name, int(int32(uid)), int(int32(gid)), flags) })
}

// Omit and Now are the special nanosecond values of utimensat(2).
const (
	Omit = unix.UTIME_OMIT
	Now  = unix.UTIME_NOW
)

// UtimesAt sets the access and modification time of name in dirfd, or of
// the file open at dirfd when name is empty, not following it.
func UtimesAt(dirfd int, name string, atime, mtime unix.Timespec) error {
	ts := []unix.Timespec{atime, mtime}
	if name == "" {
		// utimensat takes AT_EMPTY_PATH since 5.8 only; the magic link works for O_PATH too.
		return retry("utimesnanoat", func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, ProcPath(dirfd), ts, 0) })
	}
	return retry("utimesnanoat", func() error { return unix.UtimesNanoAt(dirfd, name, ts, unix.AT_SYMLINK_NOFOLLOW) })
}

// Timespec converts a time of statx.
func Timespec(t unix.StatxTimestamp) unix.Timespec {
	return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
}

// KeepTimes runs fn, which changes names in the directory fd in a way that the
// union does not show, and gives the directory its times back as well as it
// can (ovl_copy_up_one).
func KeepTimes(fd int, fn func() error) error {
	st, err := FStat(fd)
	if err != nil {
		return err
	}
	if err := fn(); err != nil {
		return err
	}
	_ = UtimesAt(fd, "", Timespec(st.Atime), Timespec(st.Mtime))
	return nil
}
