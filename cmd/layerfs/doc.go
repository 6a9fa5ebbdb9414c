// Command layerfs mounts stacks of directories as one tree and answers
// questions about such mounts.
//
// The program has three faces, chosen by its name and first argument (see
// dispatch): the subcommands of doc/cli.md; the drop-in for fuse-overlayfs,
// `layerfs -o OPTS MOUNTPOINT`; and the helper that mount(8) calls as
// mount.layerfs. All of them read the same option table. They differ in
// what an unknown option means: `layerfs mount` was typed by somebody who
// wants to be told about a mistake, the other two are called by programs
// that pass options to whatever they find and expect it to go on.
//
// # Becoming a daemon
//
// A Go program cannot fork. The parent checks the options, so that mistakes
// are reported without further ado, and then executes itself with the same
// arguments and a pipe. The child opens the branches, mounts, starts to
// serve and says on the pipe that it is ready or what went wrong; the
// parent makes sure that the mount answers and exits with the verdict.
package main
