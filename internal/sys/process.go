package sys

import (
	"time"

	"golang.org/x/sys/unix"
)

// AwaitEnd waits until the process of pidfd has ended, at most for d, and closes pidfd.
func AwaitEnd(pidfd int, d time.Duration) {
	defer Close(pidfd)
	until := time.Now().Add(d)
	for {
		left := time.Until(until)
		if left <= 0 {
			return
		}
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(left.Milliseconds())+1); err != unix.EINTR && (n > 0 || err != nil) {
			return
		}
	}
}
