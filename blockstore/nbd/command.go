package nbd

import "fmt"

// runOther serves the commands without payload in either direction, and
// BLOCK_STATUS. They may take long and are never run on the reader.
func (c *conn) runOther(req *request) {
	var err error
	switch req.cmd {
	case cmdFlush:
		err = c.flush()
	case cmdTrim:
		if err = c.exp.Discard(int64(req.off), int64(req.length)); err == nil {
			err = c.persist(req)
		}
	case cmdWriteZeroes:
		if err = c.zero(req); err == nil {
			err = c.persist(req)
		}
	case cmdBlockStatus:
		c.blockStatus(req)
		return
	case cmdCache: // reading ahead is the page cache's business
	}
	c.finish(req, nil, err)
}

// zero serves WRITE_ZEROES. It is faster than a WRITE where blocks are
// unmapped, which takes the client's leave and at least one whole block.
func (c *conn) zero(req *request) error {
	mayUnmap := !req.has(cmdFlagNoHole)
	if req.has(cmdFlagFastZero) {
		block := uint64(max(c.exp.BlockSize(), 1))
		first := (req.off + block - 1) / block
		if !mayUnmap || (req.off+uint64(req.length))/block <= first {
			return &refusal{nbdENOTSUP, "zeroes would have to be written"}
		}
	}
	if err := c.exp.Zero(int64(req.off), int64(req.length), mayUnmap); err != nil {
		return fmt.Errorf("zero %d bytes at %d: %w", req.length, req.off, err)
	}
	return nil
}

// persist flushes if the request asks for FUA. The whole pool is flushed:
// exports know nothing smaller.
func (c *conn) persist(req *request) error {
	if !req.has(cmdFlagFUA) {
		return nil
	}
	return c.flush()
}

func (c *conn) flush() error {
	if err := c.exp.Flush(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}
