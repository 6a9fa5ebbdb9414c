package sys

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// ioctls of linux/btrfs.h.
const (
	btrfsSubvolCreate = 0x5000940e // struct btrfs_ioctl_vol_args
	btrfsSnapDestroy  = 0x5000940f
	btrfsSnapCreateV2 = 0x50009417 // struct btrfs_ioctl_vol_args_v2

	btrfsArgs   = 4096
	btrfsName   = 8  // where the name is in the first structure
	btrfsNameV2 = 56 // and in the second
)

// BtrfsCreate makes the empty subvolume name in dirfd.
func BtrfsCreate(dirfd int, name string) error {
	return btrfsIoctl(dirfd, btrfsSubvolCreate, -1, btrfsName, name)
}

// BtrfsSnapshot makes name in dirfd a writable snapshot of the subvolume from in srcdir.
func BtrfsSnapshot(srcdir int, from string, dirfd int, name string) error {
	src, err := OpenIn(srcdir, from, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer Close(src)
	return btrfsIoctl(dirfd, btrfsSnapCreateV2, src, btrfsNameV2, name)
}

// BtrfsDestroy removes the subvolume name from dirfd, with all that is in it;
// ENOTEMPTY when other subvolumes are.
func BtrfsDestroy(dirfd int, name string) error {
	return btrfsIoctl(dirfd, btrfsSnapDestroy, -1, btrfsName, name)
}

func btrfsIoctl(dirfd int, cmd uint32, fd, at int, name string) error {
	if len(name) > unix.NAME_MAX {
		return unix.ENAMETOOLONG
	}
	args := make([]byte, btrfsArgs)
	binary.NativeEndian.PutUint64(args, uint64(int64(fd)))
	copy(args[at:], name)
	dir, err := OpenIn(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer Close(dir)
	return Ioctl(dir, cmd, args)
}
