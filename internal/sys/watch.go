package sys

import "golang.org/x/sys/unix"

// Inotify opens a queue of events, for reading through the runtime's poller.
func Inotify() (fd int, err error) { return unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK) }

// Watch has inotify watch the directory dirfd, which may be an O_PATH handle.
func Watch(inotify, dirfd int, mask uint32) (wd int32, err error) {
	err = retry("inotify_add_watch", func() error {
		n, err := unix.InotifyAddWatch(inotify, ProcPath(dirfd), mask)
		wd = int32(n)
		return err
	})
	return wd, err
}

// Unwatch ends a watch.
func Unwatch(inotify int, wd int32) { _, _ = unix.InotifyRmWatch(inotify, uint32(wd)) }
