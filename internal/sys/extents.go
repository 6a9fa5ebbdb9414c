package sys

import (
	"encoding/binary"
)

// Extent is a stretch of a file that is allocated.
type Extent struct {
	Offset, Length uint64 // bytes, in the file
	Shared         bool   // other files have it too
}

// Of linux/fiemap.h.
const (
	fsIocFiemap       = 0xc020660b
	fiemapFlagSync    = 1
	fiemapExtentLast  = 1
	fiemapExtentShare = 0x2000

	fiemapHeader = 32
	fiemapExtent = 56
	fiemapBatch  = 128
)

// Extents calls fn for every extent of the file fd; EOPNOTSUPP where the file
// system does not tell.
func Extents(fd int, fn func(Extent)) error {
	buf := make([]byte, fiemapHeader+fiemapBatch*fiemapExtent)
	for start := uint64(0); ; {
		clear(buf)
		binary.NativeEndian.PutUint64(buf, start)
		binary.NativeEndian.PutUint64(buf[8:], ^uint64(0)-start)
		binary.NativeEndian.PutUint32(buf[16:], fiemapFlagSync)
		binary.NativeEndian.PutUint32(buf[24:], fiemapBatch)
		if err := Ioctl(fd, fsIocFiemap, buf); err != nil {
			return err
		}
		n := int(binary.NativeEndian.Uint32(buf[20:]))
		if n == 0 {
			return nil
		}
		for i := range n {
			raw := buf[fiemapHeader+i*fiemapExtent:]
			flags := binary.NativeEndian.Uint32(raw[40:])
			e := Extent{binary.NativeEndian.Uint64(raw), binary.NativeEndian.Uint64(raw[16:]), flags&fiemapExtentShare != 0}
			fn(e)
			if flags&fiemapExtentLast != 0 {
				return nil
			}
			start = e.Offset + e.Length
		}
	}
}
