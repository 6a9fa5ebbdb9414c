// Package wire is what a pool process and its clients say to each other.
//
// A connection is a unix stream socket in the pool's directory. The server
// speaks first: a greeting with the protocol's version and, attached to it,
// a descriptor of the data file of the client's own, so that data moves
// without the server. Then both sides send frames:
//
//	length u32 | kind u8 | 3 zero bytes | id u64 | body
//
// all little-endian; length counts the body. A request has an id of the
// client's choice, and its answer the same. The server asks the client with
// ids of its own (Settle, Drop, GiveBack) and gets a Done for each. Published
// is unasked: it tells which transaction is durable.
//
// The bodies of what is frequent are binary, the rest is JSON (Admin).
package wire
