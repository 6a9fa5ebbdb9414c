package sys

import (
	"encoding/binary"
	"slices"
)

// Extent is a stretch of a file that is allocated.
type Extent struct {
	Offset, Length uint64 // bytes, in the file
	Physical       uint64 // where on the device
	Shared         bool   // other files have it too
	Placed         bool   // Physical says where the data is, and all of it as it is there
}

// Of linux/fiemap.h.
const (
	fsIocFiemap       = 0xc020660b
	fiemapFlagSync    = 1
	fiemapExtentLast  = 1
	fiemapExtentShare = 0x2000
	// Not on the disk yet, compressed, encrypted, in a tail or an inode, never written.
	fiemapNotPlaced = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800

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
			e := Extent{
				Offset: binary.NativeEndian.Uint64(raw), Physical: binary.NativeEndian.Uint64(raw[8:]), Length: binary.NativeEndian.Uint64(raw[16:]),
				Shared: flags&fiemapExtentShare != 0, Placed: flags&fiemapNotPlaced == 0,
			}
			fn(e)
			if flags&fiemapExtentLast != 0 {
				return nil
			}
			start = e.Offset + e.Length
		}
	}
}

// SameExtents reports whether two files of one file system have all their data at the
// same places of the device, which makes them equal. False means nothing.
func SameExtents(a, b int) bool {
	var list []Extent
	placed := true
	collect := func(e Extent) {
		placed = placed && e.Placed
		list = append(list, e)
	}
	if Extents(a, collect) != nil || !placed || len(list) == 0 {
		return false
	}
	first := list
	list = nil
	return Extents(b, collect) == nil && placed && slices.Equal(first, list)
}
