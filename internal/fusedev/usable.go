package fusedev

import (
	"os"

	"golang.org/x/sys/unix"
)

// Usable says why this user cannot make FUSE mounts, nil when he can: the device
// opens, and he may mount by himself or has fusermount3.
func Usable() error {
	fd, err := openDevice()
	if err != nil {
		return err
	}
	unix.Close(fd)
	if os.Geteuid() == 0 {
		return nil
	}
	_, err = findHelper()
	return err
}
