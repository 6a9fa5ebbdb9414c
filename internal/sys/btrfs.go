package sys

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// ioctls of linux/btrfs.h.
const (
	btrfsSubvolCreate = 0x5000940e
	btrfsSnapDestroy  = 0x5000940f
	btrfsSnapCreate2  = 0x50009417

	btrfsArgs     = 4096 // sizeof(struct btrfs_ioctl_vol_args) and of …_v2
	btrfsName     = 8    // offset of the name in the first
	btrfsName2    = 56   // and in the second
	btrfsReadOnly = 1 << 1
)

// MakeSubvolume makes an empty btrfs subvolume name in dirfd (no O_PATH
// descriptor); ENOTTY on other file systems.
func MakeSubvolume(dirfd int, name string) error {
	return volumeIoctl(dirfd, btrfsSubvolCreate, name, btrfsName, func([]byte) {})
}

// Snapshot makes the subvolume name in dirfd, a snapshot of the subvolume open
// at src.
func Snapshot(dirfd int, name string, src int, readOnly bool) error {
	return volumeIoctl(dirfd, btrfsSnapCreate2, name, btrfsName2, func(args []byte) {
		binary.NativeEndian.PutUint64(args, uint64(src))
		if readOnly {
			binary.NativeEndian.PutUint64(args[16:], btrfsReadOnly)
		}
	})
}

// RemoveSubvolume deletes the subvolume name in dirfd with all in it. Users
// other than root may only where the mount allows it (user_subvol_rm_allowed),
// else they have EPERM and can empty and Rmdir it.
func RemoveSubvolume(dirfd int, name string) error {
	return volumeIoctl(dirfd, btrfsSnapDestroy, name, btrfsName, func([]byte) {})
}

func volumeIoctl(dirfd int, cmd uint32, name string, nameAt int, fill func(args []byte)) error {
	args := make([]byte, btrfsArgs)
	if len(name) > unix.NAME_MAX {
		return unix.ENAMETOOLONG
	}
	copy(args[nameAt:], name)
	fill(args)
	return Ioctl(dirfd, cmd, args)
}
