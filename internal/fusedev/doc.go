// Package fusedev talks to the kernel's FUSE device: it makes the mount,
// runs the loop that reads requests, and sends notifications.
//
// go-fuse knows the messages of the protocol and this package leaves them
// to its ProtocolServer. What is here is only what surrounds them, because
// a union of many container layers needs three things of it that
// go-fuse's own server does not offer: the mount flags exactly as asked
// for (its default is nosuid,nodev), mount(2) before fusermount3 whoever
// the user is, and a loop in which a blocked handler never keeps others
// from being served.
//
// # The loop
//
// Readers are goroutines that read a request, handle it themselves and
// read the next one: handing a request to another goroutine would double
// the cost of a short operation. While requests come one after the other there is
// one reader: it is awake when the next one comes. A clock, which runs
// while there are requests, sends another one when it finds nobody at the device and
// no request read since its last tick, and has more of them wait there when requests
// keep waiting (clock.go). A reader that comes back to find enough others
// waiting ends. The number of readers thereby follows the number of handlers that
// are busy or blocked, without any limit that they could exhaust, and a handler that
// blocks keeps the others waiting for a millisecond at most.
//
// # Buffers
//
// Each reader borrows an input buffer as large as the largest write and,
// for each request, an output buffer as large as its answer can be. Both
// come from pools. Input buffers are mapped outside Go's heap, so that one in which
// only small requests have arrived takes a page or two, and a process with a
// thousand mounts stays small.
package fusedev
