package sys

import (
	"golang.org/x/sys/unix"
)

// Stat is what statx(2) says of an inode.
type Stat struct {
	Mode       uint32 // type and permissions
	Nlink      uint32
	UID, GID   uint32
	Rdev       uint32 // as in struct stat, the kernel's "new" encoding
	Blksize    uint32
	Dev        uint64
	Ino        uint64
	Size       uint64
	Blocks     uint64 // 512-byte units
	Atime      unix.StatxTimestamp
	Mtime      unix.StatxTimestamp
	Ctime      unix.StatxTimestamp
	Btime      unix.StatxTimestamp
	MountRoot  bool // the name is a mount point, and this is what is mounted there
	Attributes uint64
}

// Type returns the S_IFMT part of the mode.
func (s *Stat) Type() uint32 { return s.Mode & unix.S_IFMT }

// IsDir reports whether the inode is a directory.
func (s *Stat) IsDir() bool { return s.Type() == unix.S_IFDIR }

// IsRegular reports whether the inode is a regular file.
func (s *Stat) IsRegular() bool { return s.Type() == unix.S_IFREG }

// IsWhiteout reports whether the inode is overlayfs's whiteout: a character device 0:0.
func (s *Stat) IsWhiteout() bool { return s.Type() == unix.S_IFCHR && s.Rdev == 0 }

// Immutable reports whether nobody may change the inode (chattr +i).
func (s *Stat) Immutable() bool { return s.Attributes&unix.STATX_ATTR_IMMUTABLE != 0 }

// AppendOnly reports whether the inode may only grow (chattr +a).
func (s *Stat) AppendOnly() bool { return s.Attributes&unix.STATX_ATTR_APPEND != 0 }

// Sealed reports whether the inode is immutable or append-only: it cannot be
// removed, renamed or linked.
func (s *Stat) Sealed() bool { return s.Immutable() || s.AppendOnly() }

const (
	statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

	// DontSync as a flag of StatAt takes the attributes that the kernel has.
	// It is for branches in which our own mount may lie: asking there
	// would be asking ourselves.
	DontSync = unix.AT_STATX_DONT_SYNC
)

// StatAt returns the attributes of name in dirfd, not following it.
// flags is 0 or DontSync.
func StatAt(dirfd int, name string, flags int) (st Stat, err error) {
	var sx unix.Statx_t
	at := flags | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		at |= unix.AT_EMPTY_PATH
	}
	err = retry("statx", func() error { return unix.Statx(dirfd, name, at, statMask, &sx) })
	if err != nil {
		return Stat{}, err
	}
	st.fill(&sx)
	return st, nil
}

// FStat returns the attributes of an open file, an O_PATH handle included.
func FStat(fd int) (Stat, error) { return StatAt(fd, "", 0) }

func (s *Stat) fill(x *unix.Statx_t) {
	*s = Stat{
		Mode: uint32(x.Mode), Nlink: x.Nlink, UID: x.Uid, GID: x.Gid,
		Rdev:    rdev(x.Rdev_major, x.Rdev_minor),
		Blksize: x.Blksize,
		Dev:     unix.Mkdev(x.Dev_major, x.Dev_minor),
		Ino:     x.Ino, Size: x.Size, Blocks: x.Blocks,
		Atime: x.Atime, Mtime: x.Mtime, Ctime: x.Ctime, Btime: x.Btime,
		MountRoot:  x.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		Attributes: x.Attributes,
	}
}

// rdev packs a device number as new_encode_dev of the kernel does, which is
// what FUSE carries.
func rdev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// Statfs returns the file system statistics of the file system of fd.
func Statfs(fd int) (unix.Statfs_t, error) {
	var st unix.Statfs_t
	err := retry("fstatfs", func() error { return unix.Fstatfs(fd, &st) })
	return st, err
}
