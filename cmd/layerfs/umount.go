package main

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/control"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/fusedev"
	"github.com/layerfs/layerfs/kernelbackend"
)

// daemonTime is how long umount waits for the daemon's end.
const daemonTime = 2 * time.Second

func cmdUmount(args []string) error {
	c := newCommand("umount", false)
	lazy := c.BoolP("lazy", "l", false, "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	mountpoint, err := absolute(c.Arg(0))
	if err != nil {
		return err
	}
	if _, ok := kernelMount(mountpoint); ok {
		return kernelbackend.UnmountOverlay(mountpoint, *lazy)
	}
	if err := isFuse(mountpoint); err != nil {
		return err
	}
	return unmountFuse(mountpoint, *lazy)
}

// unmountFuse unmounts and, unless that is to be lazy, waits until the daemon has
// given back what it held: the caller may want to remove or mount the branches next.
func unmountFuse(mountpoint string, lazy bool) error {
	control.Forget(mountpoint) // of a daemon that was killed
	var shared bool
	_ = control.Call(mountpoint, "shared", nil, &shared) // false when there is no answer
	dev, _ := control.Dev(mountpoint)
	daemon := watchDaemon(mountpoint)
	if err := fusedev.Unmount(mountpoint, lazy); err != nil {
		return err
	}
	switch {
	case daemon < 0 || lazy:
	case shared:
		unix.Close(daemon)
		awaitSession(dev)
	default:
		awaitEnd(daemon)
	}
	return nil
}

// awaitSession waits until a process that serves other mounts too has let this one go.
func awaitSession(dev uint64) {
	for until := time.Now().Add(daemonTime); control.Served(dev) && time.Now().Before(until); {
		time.Sleep(2 * time.Millisecond)
	}
}

// isFuse keeps us from unmounting somebody else's file system. A dead
// mount, which answers ENOTCONN, is one that may be unmounted.
func isFuse(mountpoint string) error {
	var st unix.Statfs_t
	switch err := unix.Statfs(mountpoint, &st); {
	case err == unix.ENOTCONN || err == unix.ECONNABORTED:
		return nil
	case err != nil:
		return errs.New(errs.Of(err), "%s: %w", mountpoint, err)
	case st.Type != unix.FUSE_SUPER_MAGIC:
		return errs.New(errs.NotFound, "%s: no layerfs is mounted here", mountpoint)
	}
	return nil
}

// watchDaemon returns a descriptor of the process that serves the mount, or
// -1 when it cannot be found, as with a dead one.
func watchDaemon(mountpoint string) int {
	pid, err := control.DaemonPID(mountpoint)
	if err != nil || pid <= 0 {
		return -1
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1
	}
	return fd
}

// awaitEnd waits for the end of the daemon.
func awaitEnd(pidfd int) {
	defer unix.Close(pidfd)
	until := time.Now().Add(daemonTime)
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
