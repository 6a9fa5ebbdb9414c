package nbd

import "fmt"

// allowed are the flags that each command may carry besides FUA, which
// proto.md "Command flags" allows everywhere.
var allowed = [...]uint16{
	cmdRead:        cmdFlagDF,
	cmdWrite:       0,
	cmdFlush:       0,
	cmdTrim:        0,
	cmdCache:       0,
	cmdWriteZeroes: cmdFlagNoHole | cmdFlagFastZero,
	cmdBlockStatus: cmdFlagReqOne,
}

// check refuses what the protocol forbids or this server did not offer.
// A request that passes lies within the export.
func (c *conn) check(req *request) error {
	if int(req.cmd) >= len(allowed) || req.cmd == cmdDisc {
		return invalid("unknown command %d", req.cmd)
	}
	if bad := req.flags &^ (allowed[req.cmd] | cmdFlagFUA); bad != 0 {
		return invalid("command %d does not take the flags %#x", req.cmd, bad)
	}
	if req.cmd == cmdFlush {
		if req.off != 0 || req.length != 0 {
			return invalid("a flush has no range")
		}
		return nil
	}
	if req.has(cmdFlagDF) && !c.structured {
		return invalid("the flag DF needs structured replies")
	}
	if req.cmd == cmdBlockStatus && !c.status {
		return invalid("no metadata context was selected")
	}
	return c.checkRange(req)
}

func (c *conn) checkRange(req *request) error {
	switch {
	case req.length == 0:
		return invalid("the length is 0")
	case req.length > maxPayload && (req.cmd == cmdRead || req.cmd == cmdWrite):
		return invalid("%d bytes are more than the maximum payload of %d", req.length, maxPayload)
	case req.length > wholeSize && req.has(cmdFlagDF):
		return &refusal{nbdEOVERFLOW, "too long to be read in one fragment"} // proto.md NBD_CMD_READ
	case req.off <= c.size && uint64(req.length) <= c.size-req.off:
		return nil
	}
	bad := invalid("%d bytes at %d exceed the size of %d", req.length, req.off, c.size)
	if req.cmd == cmdWrite || req.cmd == cmdWriteZeroes {
		bad.code = nbdENOSPC // proto.md "Error values"
	}
	return bad
}

func invalid(format string, args ...any) *refusal {
	return &refusal{nbdEINVAL, fmt.Sprintf(format, args...)}
}
