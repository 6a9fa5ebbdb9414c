// Package volume reads and writes thin devices by the byte.
//
// The pool (package blockstore) knows only mappings. Everything that touches
// data happens here, in the process that uses the device: a Volume looks
// mappings up, keeps them, and reads and writes the pool's data file itself.
// It does the same over a pool in this process and over one behind a socket,
// because it sees both as a Service.
//
// # Ownership
//
// A device is open in one Volume at a time, so nobody else changes its
// mappings, and what the Volume has looked up stays true until it changes it
// itself. One thing can happen from outside: a snapshot makes blocks shared
// that were exclusive. The pool then calls Settle, and the Volume forgets
// what it knows.
//
// # Writing
//
// A block that is mapped and exclusive is written in place. Every other one
// is provisioned: a data block that was reserved beforehand gets the whole
// new content (what was there before, merged with what is written; a block
// known to be zeros gets only what is written), and then counts as mapped
// here. Such an assignment stays pending, and reaches the pool together with
// others: when there are many, on Flush, on Settle, and twice a second. A
// pending block is no different from a mapped one for whoever reads, and a
// pool process that dies does not take it along: its data is in the data
// file, and the client assigns it again.
//
// A device that is written like a file grows as it is written (Extend): the
// pool hears of the new size before it hears of blocks there. What lies in a block
// behind the end of the device is zeros.
//
// # Order
//
// A mapping that is replaced or removed frees its block, and the pool may
// give it to another device. So a mapping leaves the Volume first, then all
// running reads and writes end (they hold io for reading), and only then the
// pool is told.
//
// # Locks
//
// claims, then io, then mu. claims keeps two operations that change the
// mapping of one block apart; nothing waits for space with io or a claim in
// hand, so a discard never queues behind a writer on a full pool. pushing
// keeps assignments in order, and comes before io.
package volume
