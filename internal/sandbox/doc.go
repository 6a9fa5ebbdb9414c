// Package sandbox runs a command inside a root directory, in namespaces of
// its own. It keeps accidents in, not attackers: the command shares the network and
// the kernel with everybody, and as root without a user namespace it is root.
//
// # Processes
//
// Go programs cannot fork, so this program is executed again for each part:
//
//	caller   Launch. Gives the holder its ids, passes signals on, waits.
//	holder   in a mount namespace and, unless the caller is root, a user
//	         namespace. Mounts the root directory, calls Spec.Run, unmounts. While
//	         the command runs it sees nothing but what it needs for that (Release).
//	init     process 1 of a pid namespace, with mounts of its own. Mounts /proc,
//	         /dev and so on, changes its root directory, starts the command,
//	         reaps, and ends with the command: the kernel ends all others then.
//	command
//
// In a new user namespace the holder has no ids, hence no capabilities, when it is
// first executed. It waits for the caller to give it some and executes itself
// again: the kernel then gives it, as the namespace's root, all of them.
//
// # Signals and the terminal
//
// All four are in the process group that the caller was started in. So what
// the terminal sends (^C, ^\, ^Z) reaches the command by itself: caller and holder
// take no notice of the first two, and stop together with it. Signals that
// somebody sends to the caller go, a byte each, through a pipe (Feed) to init,
// which sends them to the command. The pipe's end tells init that the caller is dead.
package sandbox
