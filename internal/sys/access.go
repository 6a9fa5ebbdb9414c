package sys

import "golang.org/x/sys/unix"

// Access checks what this process may do (W_OK and the like) with the
// directory that the O_PATH handle fd stands for.
func Access(fd int, mode uint32) error {
	return retry("faccessat2", func() error { return unix.Faccessat(fd, ".", mode, unix.AT_EACCESS) })
}
