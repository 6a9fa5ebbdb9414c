package fusedev

import (
	"encoding/binary"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Opcodes of linux/fuse.h that the loop has to tell apart.
const (
	opForget      = 2
	opRead        = 15
	opGetXattr    = 22
	opListXattr   = 23
	opInit        = 26
	opReaddir     = 28
	opInterrupt   = 36
	opIoctl       = 39
	opNotifyReply = 41
	opBatchForget = 42
	opReaddirPlus = 44
)

const (
	headerSize    = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeaderSize = int(unsafe.Sizeof(fuse.OutHeader{}))
)

// reader is one goroutine of the loop.
type reader struct {
	conn   *Conn
	unique atomic.Uint64 // the request that is being handled, or 0
}

func (r *reader) run() {
	c := r.conn
	defer func() {
		c.mu.Lock()
		delete(c.readers, r)
		c.mu.Unlock()
		c.gone.Done()
	}()
	in, err := c.input.get()
	if err != nil {
		c.log.Printf("a buffer for requests: %v", err)
		if c.waiting.Add(-1) == 0 {
			c.end(fmt.Errorf("no memory for requests: %w", err))
		}
		return
	}
	defer c.input.put(in)
	for {
		in.rest()
		msg, ok := r.next(in.buf)
		in.used = max(in.used, len(msg))
		c.waiting.Add(-1)
		if !ok {
			return
		}
		c.seen.Add(1)
		c.watch()
		r.handle(msg)
		if c.waiting.Add(1) > c.wanted.Load() {
			c.waiting.Add(-1)
			return
		}
	}
}

// next reads a request; false means that there will be no more.
func (r *reader) next(buf []byte) ([]byte, bool) {
	c := r.conn
	for !c.dead.Load() {
		n, err := syscall.Read(c.fd, buf)
		switch err {
		case nil:
			if n >= headerSize {
				return buf[:n], true
			}
			c.end(fmt.Errorf("reading /dev/fuse: a request of %d bytes", n))
		case syscall.EINTR, syscall.EAGAIN, syscall.ENOENT:
			// ENOENT: the request was taken back while it was being read.
		case syscall.ENODEV, syscall.ECONNABORTED:
			c.end(nil)
		default:
			c.end(fmt.Errorf("reading /dev/fuse: %w", err))
		}
	}
	return nil, false
}

// handle has a request answered.
func (r *reader) handle(msg []byte) {
	c := r.conn
	op := opcode(msg)
	if op == opInit && c.OnInit != nil {
		c.OnInit(parseInit(msg))
	}
	out := c.output.get(payloadSize(op, msg))
	defer c.output.put(out)

	r.unique.Store(unique(msg))
	n := c.serve(msg, *out)
	r.unique.Store(0)
	if n == 0 {
		return
	}
	// ENOENT: the caller was interrupted and the request is forgotten.
	// Once the mount is gone nothing can be said to anybody.
	if err := c.write((*out)[:n]); err != nil && err != syscall.ENOENT && !c.dead.Load() && err != syscall.ENODEV {
		c.log.Printf("answer to request %d (opcode %d): %v", unique(msg), op, err)
	}
	if op == opInit {
		readAhead(c.mountpoint, c.readAhead)
	}
}

// serve passes a request to the protocol server and returns the length of
// the answer in out. Whatever goes wrong there, the caller gets an answer:
// one that waits for ever cannot even be killed.
func (c *Conn) serve(msg, out []byte) (n int) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Printf("panic while handling opcode %d: %v\n%s", opcode(msg), p, debug.Stack())
			n = failure(msg, out)
		}
	}()
	if c.Gate != nil && opcode(msg) != opInterrupt { // that may be what a request inside waits for
		c.Gate.Enter()
		defer c.Gate.Leave()
	}
	n, status := c.server.HandleRequest([][]byte{msg}, [][]byte{out})
	if !status.Ok() && n == 0 {
		return failure(msg, out)
	}
	return n
}

// failure writes the answer EIO.
func failure(msg, out []byte) int {
	if !expectsReply(opcode(msg)) {
		return 0
	}
	eio := int32(syscall.EIO)
	binary.NativeEndian.PutUint32(out[0:], uint32(outHeaderSize))
	binary.NativeEndian.PutUint32(out[4:], uint32(-eio))
	binary.NativeEndian.PutUint64(out[8:], unique(msg))
	return outHeaderSize
}

func opcode(msg []byte) uint32 { return binary.NativeEndian.Uint32(msg[4:]) }
func unique(msg []byte) uint64 { return binary.NativeEndian.Uint64(msg[8:]) }

func expectsReply(op uint32) bool {
	return op != opForget && op != opBatchForget && op != opInterrupt && op != opNotifyReply
}

// payloadSize is how much data the answer may carry beside its structure.
func payloadSize(op uint32, msg []byte) int {
	var offset uintptr
	switch op {
	case opRead, opReaddir, opReaddirPlus:
		offset = unsafe.Offsetof(fuse.ReadIn{}.Size)
	case opGetXattr, opListXattr:
		offset = unsafe.Offsetof(fuse.GetXAttrIn{}.Size)
	case opIoctl:
		offset = unsafe.Offsetof(fuse.IoctlIn{}.OutSize)
	default:
		return 0 // a symbolic link's target fits in the smallest buffer
	}
	if len(msg) < int(offset)+4 {
		return 0
	}
	return int(binary.NativeEndian.Uint32(msg[offset:]))
}

// parseInit reads what the kernel offers; old kernels send less of it.
func parseInit(msg []byte) fuse.InitIn {
	var in fuse.InitIn
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&in)), unsafe.Sizeof(in)), msg)
	return in
}

// interruptMessage is what the kernel sends to interrupt a request.
func interruptMessage(target uint64) []byte {
	msg := make([]byte, unsafe.Sizeof(fuse.InterruptIn{}))
	binary.NativeEndian.PutUint32(msg[0:], uint32(len(msg)))
	binary.NativeEndian.PutUint32(msg[4:], opInterrupt)
	binary.NativeEndian.PutUint64(msg[headerSize:], target)
	return msg
}
