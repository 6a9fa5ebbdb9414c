// Package client uses a pool through the pool's process, starting that when
// it does not run.
//
// A Client is one user of one pool. Devices that it opens are volume.Volume:
// they read and write the pool's data file themselves, and ask the process
// for mappings and blocks.
//
// Whoever must not start programs by himself, a daemon that serves a mount for
// one, gives the client a Starter.
//
// # When the pool process dies
//
// The client starts it again and repeats what may be lost, before any other
// call goes on; whoever was waiting sees a pause and no error. What is
// repeated is in the journal: assignments and removals of mappings, in
// order, until the process says that the transaction they belong to is
// durable. The data needs no repeating, it is in the data file; a new pool
// process gives no block away before its clients are back (package server).
// Calls that were under way are made again: all of them can be. Creating a
// device carries a nonce, by which the pool knows its own earlier work.
//
// # Locks
//
// reconnecting, then mu. Neither is held while a Volume is asked to settle.
package client
