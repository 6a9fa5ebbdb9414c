package sys

import "encoding/binary"

// linux/dm-ioctl.h.
const (
	dmGetTargetVersion = 0xc138fd11 // _IOWR(0xfd, 17, struct dm_ioctl)
	dmSize             = 312        // sizeof(struct dm_ioctl)
	dmName             = 48
	dmRoom             = 256 // for a struct dm_target_versions
)

// MapperTarget asks device-mapper, whose control node is open at fd, for a
// target, which loads its module; EINVAL when there is none of that name.
func MapperTarget(fd int, target string) error {
	buf := make([]byte, dmSize+dmRoom)
	for i, v := range []uint32{4, 0, 0, uint32(len(buf)), dmSize} { // version, size, start of the data
		binary.NativeEndian.PutUint32(buf[4*i:], v)
	}
	copy(buf[dmName:dmName+128], target)
	return Ioctl(fd, dmGetTargetVersion, buf)
}
