package sys

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// inBranch is how every name in a branch is opened: below the directory,
// through no symbolic link of any kind, and not across a mount.
const inBranch = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// retry makes the system call fn, called op, until it is not interrupted.
func retry(op string, fn func() error) error {
	if err := fault(op); err != nil {
		return err
	}
	for {
		err := fn()
		if err != unix.EINTR {
			return err
		}
	}
}

// Step counts as the system call op, for tests that make such calls fail or kill the
// process before them: for what a library is about to do to the disk.
func Step(op string) error { return fault(op) }

// OpenIn opens name below dirfd. The name may have several components; none
// may be a symbolic link or a mount point (EXDEV).
func OpenIn(dirfd int, name string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: inBranch,
	}
	op := "openat2"
	if flags&(unix.O_CREAT|unix.O_TMPFILE&^unix.O_DIRECTORY) != 0 {
		how.Mode = uint64(mode & 07777)
		op = "openat2 O_CREAT"
	}
	var fd int
	err := retry(op, func() (err error) {
		fd, err = unix.Openat2(dirfd, name, &how)
		if err == unix.EAGAIN {
			return unix.EINTR // a rename raced with RESOLVE_BENEATH; openat2(2) asks to try again
		}
		return err
	})
	return fd, err
}

// OpenUntouched opens a file, or with O_DIRECTORY in flags a directory, for
// reading such that its access time stays as it is, where this user may ask for
// that (the owner, or CAP_FOWNER).
func OpenUntouched(dirfd int, name string, flags int) (int, error) {
	how := unix.O_RDONLY | unix.O_NONBLOCK | flags
	fd, err := OpenIn(dirfd, name, how|unix.O_NOATIME, 0)
	if err == unix.EPERM {
		fd, err = OpenIn(dirfd, name, how, 0)
	}
	return fd, err
}

// OpenDir opens the directory name below dirfd as a handle for *at calls only.
func OpenDir(dirfd int, name string) (int, error) {
	return OpenIn(dirfd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// OpenRoot opens an absolute directory as the root of a branch, following
// symbolic links in it, as a handle for *at calls.
func OpenRoot(path string) (int, error) {
	var fd int
	err := retry("open", func() (err error) {
		fd, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// OpenPath opens a file outside of any branch for reading.
func OpenPath(path string) (fd int, err error) {
	err = retry("open", func() (err error) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// Close closes fd; the descriptor is gone whatever the error.
func Close(fd int) error { return unix.Close(fd) }

// Dup duplicates fd with close-on-exec set.
func Dup(fd int) (dup int, err error) {
	err = retry("fcntl", func() (err error) { dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); return err })
	return dup, err
}

// ProcPath is the magic link of fd in /proc, for calls that take no O_PATH descriptor,
// and for names that would be too long by their path.
func ProcPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// procEntry is name below dirfd by way of /proc; the last component is not
// followed by the l* calls.
func procEntry(dirfd int, name string) string {
	if name == "" || name == "." {
		return ProcPath(dirfd)
	}
	return ProcPath(dirfd) + "/" + name
}

// PathOf returns where the directory fd is in the file system, as the kernel
// knows it.
func PathOf(fd int) (string, error) { return os.Readlink(ProcPath(fd)) }
