package driver

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// fsNames are Docker's names of file systems (daemon/graphdriver FsNames).
var fsNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC:      "extfs",
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.XFS_SUPER_MAGIC:       "xfs",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	unix.NFS_SUPER_MAGIC:       "nfs",
	unix.F2FS_SUPER_MAGIC:      "f2fs",
	unix.SQUASHFS_MAGIC:        "squashfs",
	unix.FUSE_SUPER_MAGIC:      "fuse",
	0x2fc12fc1:                 "zfs",
}

// BackingFilesystem returns the name of the file system that dir lies on.
func BackingFilesystem(dir string) string {
	const unknown = "<unknown>"
	fd, err := sys.OpenRoot(dir)
	if err != nil {
		return unknown
	}
	defer sys.Close(fd)
	st, err := sys.Statfs(fd)
	if name := fsNames[int64(st.Type)]; err == nil && name != "" {
		return name
	}
	return unknown
}

// OnBtrfs reports whether dir lies on btrfs.
func OnBtrfs(dir string) bool { return BackingFilesystem(dir) == "btrfs" }
