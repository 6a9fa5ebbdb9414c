package sys

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// Of linux/dm-ioctl.h.
const (
	dmBase  = 0xc138fd00 // _IOWR(0xfd, 0, struct dm_ioctl)
	dmSize  = 312        // sizeof(struct dm_ioctl)
	dmName  = 48
	dmNames = 128 // room for a name with its zero byte
	dmRoom  = 16 << 10
	dmMax   = 1 << 20

	dmSpec     = 40 // sizeof(struct dm_target_spec)
	dmTypeName = 16
)

// Commands of device-mapper.
const (
	MapperList     = 2
	MapperCreate   = 3
	MapperRemove   = 4
	MapperSuspend  = 6 // and resume
	MapperInfo     = 7
	MapperLoad     = 9
	MapperStatus   = 12
	MapperMessage  = 14
	mapperVersions = 17
)

// mapperOp is what a command counts as, for tests that kill before one.
func mapperOp(command int, flags uint32) string {
	switch command {
	case MapperList, MapperInfo, MapperStatus:
		return "dm look" // which changes nothing
	case MapperCreate:
		return "dm create"
	case MapperRemove:
		return "dm remove"
	case MapperLoad:
		return "dm load"
	case MapperMessage:
		return "dm message"
	}
	if flags&MapperSuspended == 0 {
		return "dm resume"
	}
	return "dm suspend"
}

// Flags of device-mapper.
const (
	MapperReadOnly      = 1 << 0
	MapperSuspended     = 1 << 1
	MapperTable         = 1 << 4 // the table rather than the status
	MapperLive          = 1 << 5 // DM_ACTIVE_PRESENT_FLAG
	mapperBufferFull    = 1 << 8
	MapperNoFlush       = 1 << 11
	MapperDeferred      = 1 << 17
	mapperTargetVersion = dmBase | mapperVersions
)

// MapperTarget is one target of a table.
type MapperTarget struct {
	Start, Length uint64 // sectors
	Type, Params  string
}

// MapperReply is what device-mapper answers.
type MapperReply struct {
	Flags     uint32
	OpenCount int32
	Event     uint32
	Dev       uint64
	Targets   []MapperTarget // of MapperStatus
	Text      string         // of MapperMessage
	Names     []string       // of MapperList
}

// HasTarget asks device-mapper, whose control node is open at fd, for a target, which
// loads its module; EINVAL when there is none of that name.
func HasTarget(fd int, target string) error {
	buf := mapperHeader(target, 0, 256)
	return Ioctl(fd, mapperTargetVersion, buf)
}

func mapperHeader(name string, flags uint32, room int) []byte {
	buf := make([]byte, dmSize+room)
	for i, v := range []uint32{4, 0, 0, uint32(len(buf)), dmSize, 0, 0, flags} {
		binary.NativeEndian.PutUint32(buf[4*i:], v)
	}
	copy(buf[dmName:dmName+dmNames-1], name)
	return buf
}

// Mapper gives device-mapper a command about the device name. targets are for
// MapperLoad, message for MapperMessage.
func Mapper(fd int, command int, name string, flags uint32, targets []MapperTarget, message string) (MapperReply, error) {
	if len(name) >= dmNames {
		return MapperReply{}, unix.ENAMETOOLONG
	}
	var payload []byte
	for _, t := range targets {
		payload = append(payload, encodeTarget(t)...)
	}
	if command == MapperMessage {
		payload = append(make([]byte, 8), append([]byte(message), 0)...) // struct dm_target_msg, to sector 0
	}
	for room := max(len(payload), dmRoom); ; room *= 2 {
		buf := mapperHeader(name, flags, room)
		binary.NativeEndian.PutUint32(buf[20:], uint32(len(targets)))
		copy(buf[dmSize:], payload)
		_, err := ioctl(mapperOp(command, flags), fd, uint32(dmBase|command), buf)
		reply := decodeReply(command, buf)
		if err == nil && reply.Flags&mapperBufferFull != 0 && room < dmMax {
			continue
		}
		return reply, err
	}
}

// encodeTarget makes a struct dm_target_spec with its parameters, padded to 8 bytes.
func encodeTarget(t MapperTarget) []byte {
	size := (dmSpec + len(t.Params) + 1 + 7) &^ 7
	b := make([]byte, size)
	binary.NativeEndian.PutUint64(b, t.Start)
	binary.NativeEndian.PutUint64(b[8:], t.Length)
	binary.NativeEndian.PutUint32(b[20:], uint32(size))
	copy(b[24:24+dmTypeName-1], t.Type)
	copy(b[dmSpec:], t.Params)
	return b
}

func decodeReply(command int, buf []byte) MapperReply {
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(buf[at:]) }
	r := MapperReply{Flags: u32(28), OpenCount: int32(u32(24)), Event: u32(32), Dev: binary.NativeEndian.Uint64(buf[40:])}
	start, end := int(u32(16)), min(int(u32(12)), len(buf))
	if start > end { // no payload: the kernel may say 305 < 312
		return r
	}
	data := buf[start:end]
	switch command {
	case MapperStatus:
		r.Targets = decodeTargets(data, int(u32(20)))
	case MapperMessage:
		r.Text = unix.ByteSliceToString(data)
	case MapperList:
		r.Names = decodeNames(data)
	}
	return r
}

func decodeTargets(data []byte, n int) (list []MapperTarget) {
	at := 0
	for range n {
		if at+dmSpec > len(data) {
			return list
		}
		spec := data[at:]
		list = append(list, MapperTarget{
			Start: binary.NativeEndian.Uint64(spec), Length: binary.NativeEndian.Uint64(spec[8:]),
			Type: unix.ByteSliceToString(spec[24 : 24+dmTypeName]), Params: unix.ByteSliceToString(spec[dmSpec:]),
		})
		at = int(binary.NativeEndian.Uint32(spec[20:])) // from the start of the payload
		if at <= 0 {
			return list
		}
	}
	return list
}

// decodeNames reads a list of struct dm_name_list.
func decodeNames(data []byte) (names []string) {
	for len(data) > 12 {
		next := int(binary.NativeEndian.Uint32(data[8:]))
		if name := unix.ByteSliceToString(data[12:]); name != "" {
			names = append(names, name)
		}
		if next <= 0 || next > len(data) {
			return names
		}
		data = data[next:]
	}
	return names
}

// OpenMapper opens device-mapper's control node. ENODEV: the node is there, but not
// device-mapper.
func OpenMapper() (fd int, err error) {
	err = retry("open", func() (err error) {
		fd, err = unix.Open("/dev/mapper/control", unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// NoDevice reports whether err is device-mapper's answer for a device that is not there.
func NoDevice(err error) bool { return errors.Is(err, unix.ENXIO) }
