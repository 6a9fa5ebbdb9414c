package sys

import "golang.org/x/sys/unix"

// SyncFS writes out what the kernel has cached of the file system in which the
// directory that the O_PATH handle dirfd stands for lies.
func SyncFS(dirfd int) error {
	fd, err := OpenIn(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer Close(fd)
	return retry("syncfs", func() error { return unix.Syncfs(fd) })
}
