package nbd

import "fmt"

const (
	contextName = "base:allocation"
	contextID   = 1

	// The most descriptors in one reply. proto.md "NBD_REPLY_TYPE_BLOCK_STATUS"
	// allows 2^20; clients go on from where a shorter reply ends.
	maxDescriptors = 8 << 10

	// The export is asked for a stretch at a time: most clients want to know
	// one extent only (REQ_ONE) of all the rest of the device.
	firstStretch = 4 << 20
	lastStretch  = 1 << 30
)

// blockStatus serves BLOCK_STATUS.
func (c *conn) blockStatus(req *request) {
	limit := maxDescriptors
	if req.has(cmdFlagReqOne) {
		limit = 1
	}
	list, err := c.descriptors(req.off, uint64(req.length), limit)
	if err != nil {
		c.finish(req, nil, err)
		return
	}
	r := chunk(req.cookie, chunkDone, chunkBlockStatus, 4+len(list))
	be.PutUint32(r.head[r.n:], contextID)
	r.n += 4
	r.data = list
	c.out.put(r.giving(nil))
}

// descriptors encodes up to limit extents of the range, neighbours of the
// same state made one.
func (c *conn) descriptors(off, length uint64, limit int) ([]byte, error) {
	var list []byte
	var size uint64 // of the extent that is being put together
	var data bool
	for stretch := uint64(firstStretch); length > 0; stretch = min(2*stretch, lastStretch) {
		n := min(length, stretch)
		extents, err := c.extents(off, n)
		if err != nil {
			return nil, err
		}
		for _, e := range extents {
			if size > 0 && e.Data != data {
				list = appendDescriptor(list, size, data)
				size = 0
				if len(list) == 8*limit {
					return list, nil
				}
			}
			size += uint64(e.Length)
			data = e.Data
		}
		off, length = off+n, length-n
	}
	return appendDescriptor(list, size, data), nil
}

// extents asks the export and makes sure that the answer covers the range
// and nothing else, which the client would take for a broken server.
func (c *conn) extents(off, length uint64) ([]Extent, error) {
	extents, err := c.exp.Extents(int64(off), int64(length))
	if err != nil {
		return nil, fmt.Errorf("extents of %d bytes at %d: %w", length, off, err)
	}
	left := int64(length)
	for _, e := range extents {
		if e.Length <= 0 || e.Length > left {
			return nil, fmt.Errorf("extents of %d bytes at %d do not fit", length, off)
		}
		left -= e.Length
	}
	if left != 0 {
		return nil, fmt.Errorf("extents of %d bytes at %d: %d are missing", length, off, left)
	}
	return extents, nil
}

// appendDescriptor encodes an extent. An unmapped block is both a hole and
// zeros: a write to it needs space, and a read returns zeros.
func appendDescriptor(list []byte, size uint64, data bool) []byte {
	state := uint32(stateHole | stateZero)
	if data {
		state = 0
	}
	return be.AppendUint32(be.AppendUint32(list, uint32(size)), state)
}
