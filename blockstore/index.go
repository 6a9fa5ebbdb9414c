package blockstore

import (
	"encoding/binary"
	"errors"
)

// index keeps a pool's metadata. It is a small part of what badger offers,
// so that the crash tests can put a store in its place that loses what was
// not made durable.
type index interface {
	// get returns the value of key, or errNoKey.
	get(key []byte) ([]byte, error)
	// scan visits all keys with the prefix in order; val is nil when values
	// is false, and valid only during the call.
	scan(prefix []byte, values bool, visit func(key, val []byte) error) error
	// commit makes nodes durable, and then roots, all of them or none. A nil
	// value deletes. After an error nobody knows which of it happened.
	commit(nodes, roots []record) error
	// bytes is the size of the index on the disk.
	bytes() int64
	// room reports an error with ENOSPC when the disk is so full that a
	// commit could fail half-way. It is asked before each.
	room() error
	close() error
}

type record struct{ key, val []byte }

var errNoKey = errors.New("no such key")

// Keys: the superblock, devices by id, nodes by id.
var (
	superKey     = []byte("s")
	devicePrefix = []byte("d/")
	nodePrefix   = []byte("n/")
)

func deviceKey(id uint32) []byte { return binary.BigEndian.AppendUint32([]byte("d/"), id) }
func nodeKey(id uint64) []byte   { return binary.BigEndian.AppendUint64([]byte("n/"), id) }

func nodeIDOf(key []byte) (uint64, bool) {
	if len(key) != len(nodePrefix)+8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(key[len(nodePrefix):]), true
}
