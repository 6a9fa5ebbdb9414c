// Package blockstore keeps thin devices in a pool: one sparse data file and
// an index, with the semantics of Linux dm-thin.
//
// # Terms
//
// The pool is divided into data blocks, 64 KiB unless told. A thin device has
// a virtual size and maps virtual blocks to data blocks; what it does not map
// reads as its external origin, a file, or as zeros. To provision is to give a
// virtual block a data block. A snapshot is a device that starts with the
// mappings of another; the blocks are shared until one of them is written,
// which breaks sharing by a copy.
//
// # Who does what
//
// A Pool knows mappings and counts and never touches data, except to sync,
// punch and lengthen the file. Whoever uses a device reads and writes the data
// file himself (package volume): he looks mappings up (Leaf), reserves data
// blocks (Reserve), fills them and then assigns them (Assign). He is the
// device's Owner; nobody else changes its mappings meanwhile. Below are the
// process of a pool and its clients (server, wire, client), its ways out
// (fusefile, nbd) and the XML of thin_dump (thinxml).
//
// # On disk
//
//	POOL/data      data block b is at b × block size; nothing else is in it
//	POOL/index/    badger:
//	  s            the superblock, JSON
//	  d/ID         a device, JSON: name, size, root node, mapped blocks, origin, use
//	  n/NODE       a node, binary (see node.go)
//	POOL/ballast   space that is given back when the disk is full
//
// A device's mappings are a radix tree of nodes with 256 entries; a leaf maps
// 256 virtual blocks, 16 MiB. A leaf's entry has the data block and the device
// that first wrote it. A tree is as high as its highest block needs. Nodes
// have fresh ids and never change once they are durable: a change makes copies
// of the path from the root (shadowing, as dm-btree).
//
// # External origins and sizes
//
// A device's record says how far its origin still shows (Origin.Valid); that only
// goes down, when the device is made smaller, and so what was cut off reads as
// zeros when it grows again. A range that was zeroed has entries without a data
// block. All of it changes in the commit in which the size does.
//
// A device has one owner, who may change it, or any number of readers. What it is
// for (Use) the pool keeps for the union, whose files it may hold (internal/stub).
//
// # Counts
//
// The count of a node is the number of its parents (nodes and devices), that
// of a data block the number of leaves that map it. They are not stored: load
// walks all trees and derives them, and what is not reached is garbage of a
// crash. A snapshot adds one parent to one node, whatever its size.
//
// A block may be written in place when it, and every node on the path to it,
// has a count of one.
//
// # Invariants
//
//   - An increment counts at once; a decrement when the transaction that makes
//     it is durable. Until then a crash would bring the old reference back. So
//     a freed block is neither given away, nor punched, nor written in place
//     by a former sharer before that.
//   - A mapping is inserted only when the block has its whole content. The data
//     file is synced before the nodes are written, the nodes are durable before
//     the roots, and the roots and the superblock change in one transaction of
//     badger (commit.go).
//   - After any error of these the pool goes back to its last commit and takes
//     no changes (ReadOnly, needs_check), as dm-thin does. A sync that failed
//     is never repeated.
//   - Before a commit the disk is asked for room: a full disk is ENOSPC to who
//     wants something durable, the changes stay, and badger never meets it.
//
// # The metadata snapshot
//
// It is a list of roots in the superblock. It counts as no reference, so that
// writing in place goes on as in dm-thin; instead, nothing that may belong to
// it is freed until it is released (pins in free.go).
//
// # Locks
//
// Pool.growing, Pool.commitMu, Pool.mu, in this order. Owners are asked for
// things with none of them held. Pool.reading keeps blocks that were freed
// from being given away under those who read without owning; see View.
package blockstore
