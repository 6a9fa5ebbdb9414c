// Package sys holds every raw system call of layerfs.
//
// Everything works on (dirfd, name), where name is a single path component
// and is never followed when it is a symbolic link. No function here takes
// an absolute path except those whose name says so; that is what keeps a
// hostile branch from leading the daemon out of it.
//
// All functions return syscall.Errno (unix.Errno) errors unwrapped, retry
// EINTR, and are safe for concurrent use.
package sys
