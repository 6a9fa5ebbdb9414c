package sys

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xattrArgs is struct xattr_args of getxattrat(2), where a pointer has 64 bits.
type xattrArgs struct {
	value unsafe.Pointer // as a pointer: what it points to may lie on a stack that moves
	size  uint32
	flags uint32
}

// hasXattrAt reports whether the kernel has getxattrat(2) (Linux 6.13), which
// costs a third of the way by /proc. A sandbox may refuse it as unknown.
var hasXattrAt = sync.OnceValue(func() bool {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		return false
	}
	_, err := getxattrat(unix.AT_FDCWD, "/", "user.layerfs", nil)
	return err != unix.ENOSYS && err != unix.EPERM
})

// getxattrat calls getxattrat(2) for the entry name of dirfd, which is not followed.
func getxattrat(dirfd int, name, attr string, dest []byte) (int, error) {
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	key, err := unix.BytePtrFromString(attr)
	if err != nil {
		return 0, err
	}
	args := xattrArgs{size: uint32(len(dest))}
	if len(dest) > 0 {
		args.value = unsafe.Pointer(unsafe.SliceData(dest))
	}
	n, _, errno := unix.Syscall6(unix.SYS_GETXATTRAT, uintptr(dirfd), uintptr(unsafe.Pointer(path)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(key)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
