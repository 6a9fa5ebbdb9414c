// Package nbd serves block devices to NBD clients: nbd-client and the
// kernel, qemu, libnbd. It knows the protocol and nothing of the store
// behind it, which it sees as Exports.
//
// Names of sections are those of doc/proto.md in NetworkBlockDevice/nbd.
// "Must" and "should" have the meaning they have there.
//
// # Protocol
//
// Fixed newstyle without TLS. In the handshake: EXPORT_NAME, ABORT, LIST,
// INFO, GO, STRUCTURED_REPLY, LIST_META_CONTEXT and SET_META_CONTEXT with
// the one context base:allocation; the others are answered with ERR_UNSUP,
// STARTTLS among them. In the transmission phase: READ, WRITE, DISC, FLUSH,
// TRIM, WRITE_ZEROES, BLOCK_STATUS, and CACHE, which is not advertised but
// succeeds for the clients that send it all the same. FUA is taken with
// every command. FAST_ZERO is granted where blocks are unmapped.
//
// With structured replies zeros are sent as holes. Whether data is zeros is
// seen from the data itself: asking the export first would cost every other
// read something, and this costs them nothing. For clients that read without
// asking for the block status a hole of 64 KiB comes up to three times as fast.
//
// A request that is refused changes nothing but has its payload drained, so
// that the stream stays in step. Only a bad magic ends the connection, as
// nothing tells where the next request would begin.
//
// # Durability
//
// All connections to an export share one Export, opened for the first of
// them and flushed and closed after the last. A write is passed to it before
// its reply is sent, and its Flush covers what was passed before: that makes
// a FLUSH cover every write that was answered when it was received, on
// whatever connection, and CAN_MULTI_CONN true. Requests that overlap in time
// are in no order, as proto.md has it.
//
// # Goroutines
//
// Each listener has a goroutine that accepts, each connection one that goes
// through the handshake and then is the reader. The reader runs a READ or
// WRITE itself when the last ones were short (see pace): handing it on costs
// more than a few KiB from the page cache. Others go to workers, one
// goroutine for each: so do FLUSH, FUA, whatever may change many blocks, and
// payloads of more than a piece.
//
// When a request that the reader runs turns out to take long, a new reader
// takes over and the old one becomes a worker (see turn). So nothing that an
// export waits for, space in a full pool above all, keeps the next requests
// from being read.
//
// A reply is sent by whoever has it, together with all that is queued, in
// one writev. Someone who finds another sending only queues his own (see
// outq). The reader holds its replies back while more requests are in its
// buffer, up to a limit, and never while it waits for the client.
//
// # Memory
//
//	per connection         a receive buffer of 256 KiB; 4 MiB of payload for certain,
//	                       up to 32 MiB if the server has it; 64 requests
//	over all connections   256 connections; 256 MiB of payload besides the 4 MiB each
//
// A connection at its limit stops reading until its own replies are sent.
// None ever waits for what another holds: a client that reads no replies
// keeps at most its share, and with the common memory used up the others go
// on with their reserves. A reader that is replaced leaves its receive buffer
// to the write that lies in it, until that ends.
//
// Payloads of more than a piece (1 MiB) are moved in pieces. A WRITE may
// thereby reach the export in part when its client disappears, like one that
// a crash interrupts. A READ with a simple reply is read in whole up to 4 MiB,
// which is more than the kernel's client asks for; in a longer one an error
// after the first piece can only be told by hanging up.
//
// # Locks
//
// outq.sending before outq.mu; Server.mu, registry.mu, budget.mu, outq.mu,
// turn.mu and pieces.mu are leaves. No lock is held across a call of an
// Export, but for the long READ with a simple reply, which holds
// outq.sending: nothing else may come between its parts.
package nbd
