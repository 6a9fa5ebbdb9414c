// Package errs classifies errors for the command line.
//
// A class is what a script can act on: it decides the exit code. The
// message is for people and names the input and what would be right.
// Below the command line everything is an ordinary wrapped error; a class
// is attached where the cause is known and survives further wrapping.
package errs

import (
	"errors"
	"fmt"
	"syscall"
)

// Class is the kind of a failure; its value is the exit code of `layerfs`.
// The numbers are part of the command line's contract: never change or reuse.
type Class int

const (
	Failed      Class = 1 // the operation failed
	Usage       Class = 2 // wrong usage, unknown or contradictory option
	NotFound    Class = 3 // a named thing does not exist
	Busy        Class = 4 // in use by somebody else
	NoSpace     Class = 5 // the file system or the pool is full
	Corrupt     Class = 6 // corrupt, needs check, wrong dialect
	Unsupported Class = 7 // not possible on this machine; the message says what is missing
)

type classed struct {
	class Class
	err   error
}

func (c *classed) Error() string { return c.err.Error() }
func (c *classed) Unwrap() error { return c.err }

// New returns an error of class c. format may wrap a cause with %w.
func New(c Class, format string, args ...any) error {
	return &classed{c, fmt.Errorf(format, args...)}
}

// Of returns the class of err: the one attached by New, else the one that
// the wrapped errno implies, else Failed.
func Of(err error) Class {
	var c *classed
	if errors.As(err, &c) {
		return c.class
	}
	var e syscall.Errno
	if errors.As(err, &e) {
		switch e {
		case syscall.ENOENT, syscall.ENOTDIR:
			return NotFound
		case syscall.EBUSY:
			return Busy
		case syscall.ENOSPC, syscall.EDQUOT:
			return NoSpace
		}
	}
	return Failed
}

// Errno returns the errno that err wraps, or EIO: what the FUSE edge
// answers when something below it failed.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return syscall.EIO
}
