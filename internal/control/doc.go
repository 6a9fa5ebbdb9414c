// Package control is the channel between the commands that ask about a
// live mount and the daemon that serves it.
//
// It is a unix socket that carries one JSON request and one JSON answer per
// connection. The socket is named after the device number of the mount,
// which the client learns from the mountpoint: nothing has to be set up or
// remembered, and moving or bind-mounting the mount changes nothing. It
// lies outside the merged tree, in a directory that only the owner of the
// mount can enter, and the daemon checks the peer's credentials besides.
//
// A request never makes the daemon open a path: commands that need the
// branches' files open them themselves, with their own rights, and directories
// that the daemon is to use go along as descriptors.
package control
