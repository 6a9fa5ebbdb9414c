package fusedev

import (
	"encoding/binary"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// InvalInode makes the kernel forget an inode's attributes and, unless off
// is negative, the cached data from off on; length 0 means to the end.
func (c *Conn) InvalInode(nodeid uint64, off, length int64) error {
	msg := notification(fuse.NOTIFY_INVAL_INODE, 24)
	msg = binary.NativeEndian.AppendUint64(msg, nodeid)
	msg = binary.NativeEndian.AppendUint64(msg, uint64(off))
	msg = binary.NativeEndian.AppendUint64(msg, uint64(length))
	return c.notify(msg)
}

// InvalEntry makes the kernel look a name up again. It must not be called
// by the handler of a request on the same directory, whose lock the kernel
// holds: both would wait for ever.
func (c *Conn) InvalEntry(parent uint64, name string) error {
	msg := notification(fuse.NOTIFY_INVAL_ENTRY, 16+len(name)+1)
	msg = binary.NativeEndian.AppendUint64(msg, parent)
	msg = binary.NativeEndian.AppendUint32(msg, uint32(len(name)))
	msg = binary.NativeEndian.AppendUint32(msg, 0) // flags
	return c.notify(appendName(msg, name))
}

// Delete tells the kernel that a name is gone, also when a process stands
// in that directory. The warning of InvalEntry applies.
func (c *Conn) Delete(parent, child uint64, name string) error {
	msg := notification(fuse.NOTIFY_DELETE, 24+len(name)+1)
	msg = binary.NativeEndian.AppendUint64(msg, parent)
	msg = binary.NativeEndian.AppendUint64(msg, child)
	msg = binary.NativeEndian.AppendUint32(msg, uint32(len(name)))
	msg = binary.NativeEndian.AppendUint32(msg, 0) // padding
	return c.notify(appendName(msg, name))
}

// notification starts a message: an answer to no request, whose error
// field carries the positive code. go-fuse's constants are negative.
func notification(code int, body int) []byte {
	msg := make([]byte, 0, outHeaderSize+body)
	msg = binary.NativeEndian.AppendUint32(msg, uint32(outHeaderSize+body))
	msg = binary.NativeEndian.AppendUint32(msg, uint32(-code))
	return binary.NativeEndian.AppendUint64(msg, 0)
}

func appendName(msg []byte, name string) []byte {
	return append(append(msg, name...), 0)
}

// notify sends a notification. What the kernel does not know it need not
// forget.
func (c *Conn) notify(msg []byte) error {
	if err := c.write(msg); err != nil && err != syscall.ENOENT {
		return err
	}
	return nil
}
