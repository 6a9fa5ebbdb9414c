package wire

import (
	"encoding/json"

	"github.com/layerfs/layerfs/blockstore"
)

// Call is the body of an Admin request; the answer's body is the result.
type Call struct {
	Name string          `json:"name"`
	Args json.RawMessage `json:"args,omitempty"`
}

// The names of calls, with the types of their arguments and results.
const (
	CallHello     = "hello"     // Hello → Welcome
	CallRecovered = "recovered" // the client has adopted what it had
	CallStatus    = "status"    // → blockstore.Status
	CallDevices   = "devices"   // → []blockstore.DeviceInfo
	CallDevice    = "device"    // string → blockstore.DeviceInfo
	CallOpen      = "open"      // string → blockstore.DeviceInfo
	CallClose     = "close"     // uint32
	CallCreate    = "create"    // blockstore.NewDevice → blockstore.DeviceInfo
	CallDelete    = "delete"    // uint32
	CallOpenRead  = "open read" // string → blockstore.DeviceInfo
	CallInfo      = "info"      // string → blockstore.DeviceInfo, without exclusive blocks
	CallState     = "state"     // StateArgs
	CallOrigin    = "origin"    // OriginArgs
	CallMessage   = "message"   // string
	CallSettle    = "settle"    // every user assigns what it has written
	CallGrow      = "grow"      // int64, bytes
	CallTrim      = "trim"      //
	CallWait      = "wait"      // blockstore.Event
	CallTrace     = "trace"     // TraceArgs → TraceResult
	CallRead      = "read"      // ReadArgs → []byte
	CallDelta     = "delta"     // [2]string → []blockstore.Difference
	CallDump      = "dump"      // DumpArgs → blockstore.Dump
	CallExport    = "export"    // bool
	CallShutdown  = "shutdown"  // EBUSY while a device is open
)

// Hello introduces a client.
type Hello struct {
	// Lock is the client's lock file in the pool's directory, for those who
	// write: a new pool process waits for it before it gives blocks away.
	Lock string `json:"lock,omitempty"`
	// Recovering says that the client has blocks to adopt.
	Recovering bool `json:"recovering,omitempty"`
}

// Welcome is the answer to Hello.
type Welcome struct {
	UUID        string `json:"uuid"`
	BlockSize   int64  `json:"block_size"` // bytes
	SkipZeroing bool   `json:"skip_zeroing"`
	// Instance is this process, Past those before it.
	Instance string                `json:"instance"`
	Past     []blockstore.Instance `json:"past"`
	Freed    uint64                `json:"freed"`
	PID      int                   `json:"pid"`
}

// StateArgs is the state of the blockstore.Use with that key.
type StateArgs struct {
	Device string `json:"device"`
	Key    string `json:"key"`
	State  string `json:"state"`
}

// OriginArgs says where the external origin of a device is.
type OriginArgs struct {
	Device string            `json:"device"`
	Origin blockstore.Origin `json:"origin"`
}

// TraceArgs names a virtual block.
type TraceArgs struct {
	Device string `json:"device"`
	Block  uint64 `json:"block"`
}

// TraceResult says where it lives.
type TraceResult struct {
	Mapped bool   `json:"mapped"`
	Block  uint64 `json:"data_block"`
	Owner  uint32 `json:"owner"` // the device that first wrote it
	Name   string `json:"owner_name,omitempty"`
}

// ReadArgs asks for data of a device that the client has not open.
type ReadArgs struct {
	Device string `json:"device"`
	Offset int64  `json:"offset"` // bytes
	Length int    `json:"length"` // bytes, at most a mebibyte
}

// LeafBody encodes a LeafMap.
func LeafBody(m *blockstore.LeafMap) []byte {
	words := make([]uint64, 0, 2+blockstore.LeafBlocks)
	words = append(words, m.Freed, m.Next)
	for _, e := range m.Entries {
		words = append(words, uint64(e))
	}
	return Words(words...)
}

// ParseLeaf decodes a LeafMap.
func ParseLeaf(body []byte) (*blockstore.LeafMap, error) {
	words, err := ParseWords(body, 2+blockstore.LeafBlocks)
	if err != nil {
		return nil, err
	}
	m := &blockstore.LeafMap{Freed: words[0], Next: words[1]}
	for i := range m.Entries {
		m.Entries[i] = blockstore.Mapping(words[2+i])
	}
	return m, nil
}

// AssignBody encodes a device and assignments to it.
func AssignBody(id uint32, list []blockstore.Assignment) []byte {
	words := make([]uint64, 0, 1+2*len(list))
	words = append(words, uint64(id))
	for _, a := range list {
		words = append(words, a.Virtual, a.Data)
	}
	return Words(words...)
}

// ParseAssign decodes what AssignBody made.
func ParseAssign(body []byte) (id uint32, list []blockstore.Assignment, err error) {
	words, err := ParseWords(body, 1)
	if err != nil {
		return 0, nil, err
	}
	for i := 1; i+1 < len(words); i += 2 {
		list = append(list, blockstore.Assignment{Virtual: words[i], Data: words[i+1]})
	}
	return uint32(words[0]), list, nil
}

// GrantBody encodes grants.
func GrantBody(grants []blockstore.Grant) []byte {
	words := make([]uint64, 0, 2*len(grants))
	for _, g := range grants {
		zero := uint64(0)
		if g.Zero {
			zero = 1
		}
		words = append(words, g.Block, zero)
	}
	return Words(words...)
}

// ParseGrants decodes grants.
func ParseGrants(body []byte) ([]blockstore.Grant, error) {
	words, err := ParseWords(body, 2)
	if err != nil {
		return nil, err
	}
	var out []blockstore.Grant
	for i := 0; i+1 < len(words); i += 2 {
		out = append(out, blockstore.Grant{Block: words[i], Zero: words[i+1] == 1})
	}
	return out, nil
}
