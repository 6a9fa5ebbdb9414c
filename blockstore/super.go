package blockstore

import (
	"encoding/json"

	"github.com/layerfs/layerfs/internal/errs"
)

// superblock is the record that every commit ends with.
type superblock struct {
	Magic      string   `json:"magic"`
	Format     int      `json:"format"`
	UUID       string   `json:"uuid"`
	Options    Options  `json:"options"`
	Blocks     uint64   `json:"blocks"`
	Seq        uint64   `json:"seq"` // the transaction that wrote it
	NextNode   uint64   `json:"next_node"`
	NextDevice uint32   `json:"next_device"`
	Txid       uint64   `json:"transaction_id"` // the users', changed by message only
	NeedsCheck bool     `json:"needs_check,omitempty"`
	Exported   bool     `json:"exported,omitempty"`
	Held       *heldSet `json:"held,omitempty"`
	// Instance is the process that wrote it, and Past those before, with the
	// last transaction that each made durable. Transactions that one did not
	// have the same numbers as other ones of the next.
	Instance string     `json:"instance,omitempty"`
	Past     []Instance `json:"past,omitempty"`
}

// Instance is a time for which a pool was open.
type Instance struct {
	ID  string `json:"id"`
	Seq uint64 `json:"seq"` // its last durable transaction
}

// maxPast bounds the instances that are remembered. A client that outlives
// more of them without a word to any has lost what it had not flushed.
const maxPast = 64

const (
	poolMagic  = "layerfs pool"
	poolFormat = 1
)

// heldSet is the metadata snapshot: the devices as they were.
type heldSet struct {
	Devices  []deviceRecord `json:"devices"`
	NextNode uint64         `json:"next_node"` // nodes from here on are younger
	Txid     uint64         `json:"transaction_id"`
}

// deviceRecord is a device on disk.
type deviceRecord struct {
	ID     uint32  `json:"id"`
	Name   string  `json:"name"`
	Size   int64   `json:"size"`             // bytes
	Root   uint64  `json:"root,omitempty"`   // 0: nothing is mapped
	Level  uint8   `json:"level,omitempty"`  // of the root
	Mapped uint64  `json:"mapped,omitempty"` // data blocks
	Txid   uint64  `json:"transaction"`      // of the pool when it was made
	Parent string  `json:"parent,omitempty"`
	Origin *Origin `json:"origin,omitempty"`
	Use    *Use    `json:"use,omitempty"`
	// Nonce is what the creator called this creation, so that it can tell
	// its own device from somebody else's of the same name after a crash.
	Nonce string `json:"nonce,omitempty"`
}

func decodeSuper(data []byte) (superblock, error) {
	var sb superblock
	if err := json.Unmarshal(data, &sb); err != nil || sb.Magic != poolMagic {
		return sb, errs.New(errs.Corrupt, "the superblock is damaged, or not of a layerfs pool")
	}
	if sb.Format != poolFormat {
		return sb, errs.New(errs.Unsupported, "the pool has format %d, this program knows %d", sb.Format, poolFormat)
	}
	o := sb.Options
	if err := o.check(); err != nil || sb.Blocks == 0 || sb.Blocks > maxBlocks || sb.NextNode == 0 {
		return sb, errs.New(errs.Corrupt, "the superblock is damaged: %d blocks of %d bytes", sb.Blocks, sb.Options.BlockSize)
	}
	return sb, nil
}

func encodeJSON(key []byte, v any) record {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs
	}
	return record{key, data}
}
