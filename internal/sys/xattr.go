package sys

import (
	"strings"

	"golang.org/x/sys/unix"
)

// The extended attribute calls take (dirfd, name); an empty name is the file
// open at dirfd, which may be an O_PATH handle. They go by the magic links of
// /proc: the calls on descriptors refuse O_PATH, and getxattrat(2), which is used
// where it does, is young.

// GetXattr returns the value of attr; ENODATA when there is none.
func GetXattr(dirfd int, name, attr string) ([]byte, error) {
	var small [256]byte
	n, err := GetXattrInto(dirfd, name, attr, small[:])
	if err == nil {
		return append([]byte(nil), small[:n]...), nil
	}
	for err == unix.ERANGE {
		n, err = GetXattrInto(dirfd, name, attr, nil)
		if err != nil {
			return nil, err
		}
		buf := make([]byte, n)
		if n, err = GetXattrInto(dirfd, name, attr, buf); err == nil {
			return buf[:n], nil
		}
	}
	return nil, err
}

// GetXattrInto reads attr into dest and returns the length of the value;
// with an empty dest only the length.
func GetXattrInto(dirfd int, name, attr string, dest []byte) (n int, err error) {
	if name != "" && hasXattrAt() {
		err = retry("getxattr", func() (err error) { n, err = getxattrat(dirfd, name, attr, dest); return err })
		return n, err
	}
	path := procEntry(dirfd, name)
	get := unix.Lgetxattr
	if name == "" || name == "." {
		get = unix.Getxattr
	}
	err = retry("getxattr", func() (err error) { n, err = get(path, attr, dest); return err })
	return n, err
}

// ListXattr returns the names of the attributes that the caller may see.
func ListXattr(dirfd int, name string) ([]string, error) {
	path := procEntry(dirfd, name)
	list := unix.Llistxattr
	if name == "" || name == "." {
		list = unix.Listxattr
	}
	var small [512]byte
	buf := small[:]
	into := func(buf []byte) (n int, err error) {
		err = retry("listxattr", func() (err error) { n, err = list(path, buf); return err })
		return n, err
	}
	n, err := into(buf)
	for err == unix.ERANGE {
		if n, err = into(nil); err != nil {
			break
		}
		buf = make([]byte, n+64)
		n, err = into(buf)
	}
	if err != nil || n == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
}

// SetXattr sets attr; flags are XATTR_CREATE, XATTR_REPLACE or 0.
func SetXattr(dirfd int, name, attr string, value []byte, flags int) error {
	path := procEntry(dirfd, name)
	set := unix.Lsetxattr
	if name == "" || name == "." {
		set = unix.Setxattr
	}
	return retry("setxattr", func() error { return set(path, attr, value, flags) })
}

// RemoveXattr removes attr; ENODATA when there is none.
func RemoveXattr(dirfd int, name, attr string) error {
	path := procEntry(dirfd, name)
	remove := unix.Lremovexattr
	if name == "" || name == "." {
		remove = unix.Removexattr
	}
	return retry("removexattr", func() error { return remove(path, attr) })
}
