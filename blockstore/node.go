package blockstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// node is one node of a device's tree, dense in memory.
//
// A node that was made in the open transaction is changed in place as long
// as one parent has it; every other node is immutable (see Pool.shadow).
type node struct {
	id    uint64
	seq   uint64 // the transaction that made it
	level uint8  // 0 is a leaf
	used  int    // entries in use
	e     [fanout]uint64
}

// An entry of an inner node is the id of a node, never 0. An entry of a leaf
// is 1 + data block << 24 | the device that first wrote it, so that 0 means
// unmapped here too.
func leafEntry(block uint64, owner uint32) uint64 { return (block+1)<<24 | uint64(owner) }

// zeroBlock is the data block of entries that read as zeros.
const zeroBlock = blockMask - 1

func entryBlock(e uint64) uint64 { return e>>24 - 1 }
func entryOwner(e uint64) uint32 { return uint32(e & MaxDeviceID) }

// set changes entry i and returns what was there.
func (n *node) set(i int, e uint64) (old uint64) {
	old, n.e[i] = n.e[i], e
	switch {
	case old == 0 && e != 0:
		n.used++
	case old != 0 && e == 0:
		n.used--
	}
	return old
}

// A node on disk: format, level, two zero bytes, a bitmap of the entries in
// use, those entries, and a checksum over the id and all of it.
const (
	nodeFormat = 1
	nodeHeader = 4 + fanout/8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func nodeSum(id uint64, body []byte) uint32 {
	var key [8]byte
	binary.BigEndian.PutUint64(key[:], id)
	return crc32.Update(crc32.Checksum(key[:], castagnoli), castagnoli, body)
}

func (n *node) encode() []byte {
	buf := make([]byte, nodeHeader, nodeHeader+8*n.used+4)
	buf[0], buf[1] = nodeFormat, n.level
	for i, e := range n.e {
		if e != 0 {
			buf[4+i/8] |= 1 << (i % 8)
			buf = binary.LittleEndian.AppendUint64(buf, e)
		}
	}
	return binary.LittleEndian.AppendUint32(buf, nodeSum(n.id, buf))
}

// decodeNode reads what encode wrote. Nothing in data is trusted.
func decodeNode(id uint64, data []byte) (*node, error) {
	if len(data) < nodeHeader+4 || (len(data)-nodeHeader-4)%8 != 0 {
		return nil, fmt.Errorf("node %d: %d bytes is no length of a node", id, len(data))
	}
	body := data[:len(data)-4]
	if binary.LittleEndian.Uint32(data[len(body):]) != nodeSum(id, body) {
		return nil, fmt.Errorf("node %d: checksum does not match", id)
	}
	if body[0] != nodeFormat {
		return nil, fmt.Errorf("node %d: format %d, this program knows %d", id, body[0], nodeFormat)
	}
	n := &node{id: id, level: body[1]}
	rest := body[nodeHeader:]
	for i, b := range body[4:nodeHeader] {
		for ; b != 0; b &= b - 1 {
			if len(rest) == 0 {
				return nil, fmt.Errorf("node %d: fewer entries than its bitmap says", id)
			}
			e := binary.LittleEndian.Uint64(rest)
			if e == 0 {
				return nil, fmt.Errorf("node %d: an entry in use is empty", id)
			}
			n.set(i*8+bits.TrailingZeros8(b), e)
			rest = rest[8:]
		}
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("node %d: more entries than its bitmap says", id)
	}
	return n, nil
}
