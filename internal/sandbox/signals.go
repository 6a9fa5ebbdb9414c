package sandbox

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// passed are the signals that the command gets from the caller.
var passed = []os.Signal{
	syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2,
}

// deaf makes this process survive the signals. They are not ignored, which
// what it executes would inherit.
func deaf() { signal.Notify(make(chan os.Signal, 1), passed...) }

// pass writes each signal into feed.
func pass(signals <-chan os.Signal, feed *os.File) {
	for s := range signals {
		sig := s.(syscall.Signal)
		if (sig == syscall.SIGINT || sig == syscall.SIGQUIT) && foreground() {
			continue // from the terminal, which has sent it to the command too
		}
		if _, err := feed.Write([]byte{byte(sig)}); err != nil {
			return
		}
	}
}

// foreground reports whether what the terminal sends reaches this process.
func foreground() bool {
	group, err := terminalGroup()
	return err == nil && group == unix.Getpgrp()
}

// terminal is the controlling terminal, whatever 0, 1 and 2 are.
const terminal = "/dev/tty"

func terminalGroup() (int, error) {
	fd, err := unix.Open(terminal, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.IoctlGetInt(fd, unix.TIOCGPGRP)
}

// keepTerminal returns a function that takes the terminal back: a shell inside,
// which cannot see the group that it has it from, does not give it back.
func keepTerminal() func() {
	if !foreground() {
		return func() {}
	}
	return func() {
		signal.Ignore(syscall.SIGTTOU)
		defer signal.Reset(syscall.SIGTTOU)
		fd, err := unix.Open(terminal, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		_ = unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, unix.Getpgrp())
	}
}
