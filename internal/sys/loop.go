package sys

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// LoopTry makes a loop device of the open file and gives it back at once;
// control is /dev/loop-control, open.
func LoopTry(control, file int) error {
	var n int
	err := retry("ioctl", func() (err error) { n, err = unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE); return err })
	if err != nil {
		return err
	}
	dev, err := unix.Open(loopPath(n), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer Close(dev)
	if err := unix.IoctlSetInt(dev, unix.LOOP_SET_FD, file); err != nil {
		return err
	}
	return unix.IoctlSetInt(dev, unix.LOOP_CLR_FD, 0)
}

func loopPath(n int) string { return "/dev/loop" + strconv.Itoa(n) }
