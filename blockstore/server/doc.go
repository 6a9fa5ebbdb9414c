// Package server is the process that owns a pool.
//
// There is one per pool at most: it holds the lock file POOL/lock. It is
// started by the first client (package client), answers on POOL/socket, and
// ends when nobody has been connected for a moment and nothing is left to be
// done in the background. Badger lives here, so that a disk that others fill
// up, or an index that is damaged, takes down this process and not the
// mounts that use the pool.
//
// # When it dies
//
// A client may have written blocks that the pool does not know to be
// mapped, or does not know durably. After a crash they look free. So every
// client that writes holds a lock on a file POOL/client-*, and a new pool
// process gives no block to anybody before each client whose lock is still
// held has come back and adopted its blocks, or has let go of the lock.
package server
