package blockstore

import "testing"

// What decodeNode accepts is what encode writes.
func FuzzNode(f *testing.F) {
	n := &node{id: 7, level: 1}
	n.set(0, leafEntry(3, 9))
	n.set(255, 1<<63)
	f.Add(uint64(7), n.encode())
	f.Add(uint64(8), n.encode())
	f.Add(uint64(1), (&node{id: 1}).encode())
	f.Add(uint64(0), []byte{})
	f.Fuzz(func(t *testing.T, id uint64, data []byte) {
		n, err := decodeNode(id, data)
		if err != nil {
			return
		}
		if got := n.encode(); string(got) != string(data) && (data[2] == 0 && data[3] == 0) {
			t.Errorf("%x was read and is written as %x", data, got)
		}
	})
}

// A superblock that is accepted can be used.
func FuzzSuperblock(f *testing.F) {
	o := Options{}
	if err := o.check(); err != nil {
		f.Fatal(err)
	}
	f.Add(encodeJSON(superKey, superblock{Magic: poolMagic, Format: poolFormat, Options: o, Blocks: 5, NextNode: 1}).val)
	f.Add([]byte(`{"magic":"layerfs pool","format":2}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		sb, err := decodeSuper(data)
		if err == nil && (sb.Blocks == 0 || sb.Options.BlockSize < MinBlockSize) {
			t.Errorf("accepted %s", data)
		}
	})
}
