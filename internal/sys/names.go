package sys

import (
	"golang.org/x/sys/unix"
)

// Mkdir makes the directory name in dirfd.
func Mkdir(dirfd int, name string, mode uint32) error {
	return retry("mkdirat", func() error { return unix.Mkdirat(dirfd, name, mode) })
}

// Mknod makes a special or regular file. dev is in the kernel's new encoding.
func Mknod(dirfd int, name string, mode, dev uint32) error {
	return retry("mknodat", func() error { return unix.Mknodat(dirfd, name, mode, int(dev)) })
}

// Symlink makes name in dirfd a symbolic link to target.
func Symlink(target string, dirfd int, name string) error {
	return retry("symlinkat", func() error { return unix.Symlinkat(target, dirfd, name) })
}

// Link makes newname in newdir another name of oldname in olddir, which is
// not followed.
func Link(olddir int, oldname string, newdir int, newname string) error {
	return retry("linkat", func() error { return unix.Linkat(olddir, oldname, newdir, newname, 0) })
}

// LinkFd gives the open file fd, which may have no name, the name newname.
func LinkFd(fd int, newdir int, newname string) error {
	return retry("linkat", func() error {
		return unix.Linkat(unix.AT_FDCWD, ProcPath(fd), newdir, newname, unix.AT_SYMLINK_FOLLOW)
	})
}

// Unlink removes the non-directory name from dirfd.
func Unlink(dirfd int, name string) error {
	return retry("unlinkat", func() error { return unix.Unlinkat(dirfd, name, 0) })
}

// Rmdir removes the empty directory name from dirfd.
func Rmdir(dirfd int, name string) error {
	return retry("unlinkat", func() error { return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR) })
}

// Flags of Rename.
const (
	RenameNoReplace = unix.RENAME_NOREPLACE
	RenameExchange  = unix.RENAME_EXCHANGE
	RenameWhiteout  = unix.RENAME_WHITEOUT
)

// Rename moves a name; flags as in renameat2(2).
func Rename(olddir int, oldname string, newdir int, newname string, flags uint) error {
	return retry("renameat2", func() error { return unix.Renameat2(olddir, oldname, newdir, newname, flags) })
}

// Readlink returns the target of the symbolic link name in dirfd, or of
// dirfd itself when name is empty.
func Readlink(dirfd int, name string) ([]byte, error) {
	buf := make([]byte, unix.PathMax)
	var n int
	err := retry("readlinkat", func() (err error) { n, err = unix.Readlinkat(dirfd, name, buf); return err })
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// RemoveAll removes name in dirfd and all below it, following nothing and
// crossing no mount. A name that does not exist is no error.
func RemoveAll(dirfd int, name string) error {
	err := Unlink(dirfd, name)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	fd, oerr := OpenIn(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if oerr == unix.EACCES && ChmodAt(dirfd, name, 0700) == nil {
		fd, oerr = OpenIn(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	if oerr != nil {
		return err
	}
	defer Close(fd)
	entries, err := ReadDir(fd)
	if err != nil {
		return err
	}
	made := false
	for _, e := range entries {
		err := RemoveAll(fd, e.Name)
		if err == unix.EACCES && !made {
			made = true // a directory that its owner may not write
			if unix.Fchmod(fd, 0700) == nil {
				err = RemoveAll(fd, e.Name)
			}
		}
		if err != nil {
			return err
		}
	}
	return Rmdir(dirfd, name)
}
