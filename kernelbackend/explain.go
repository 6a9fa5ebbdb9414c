package kernelbackend

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// maxLowers is the kernel's OVL_MAX_STACK.
const maxLowers = 500

// explain makes of an errno of the kernel, and of what it said besides, what
// somebody can act on.
func (m *mounting) explain(err error, said string) error {
	var errno unix.Errno
	if !errors.As(err, &errno) || errs.Of(err) == errs.Unsupported {
		return err
	}
	class, why := m.why(errno)
	if said != "" {
		why += "; the kernel says: " + said
	}
	return errs.New(class, "the kernel's overlay cannot be mounted on %s: %w: %s", m.point.path, err, why)
}

func (m *mounting) why(errno unix.Errno) (errs.Class, string) {
	switch errno {
	case unix.ENODEV:
		return errs.Unsupported, "this kernel has no overlay (modprobe overlay)"
	case unix.EPERM, unix.EACCES:
		return errs.Unsupported, "that takes root, or a user namespace with a mount namespace"
	case unix.ELOOP:
		return errs.Usage, "branches overlap: the kernel allows no branch, upper or work directory inside another"
	case unix.EBUSY:
		return errs.Busy, "the upper or the work directory is in use by another overlay"
	case unix.ESTALE:
		return errs.Usage, "with index=on an upper belongs to the lowers it was first mounted with, and cannot be copied: use index=off"
	case unix.EROFS:
		return errs.Usage, "the upper's file system is read-only"
	case unix.EINVAL:
		return m.whyInvalid()
	}
	return errs.Of(errno), "see the kernel's log (dmesg)"
}

// whyInvalid goes through what the kernel answers with EINVAL (ovl_fill_super).
func (m *mounting) whyInvalid() (errs.Class, string) {
	if len(m.lowers) > maxLowers {
		return errs.Unsupported, "it takes 500 lowers at most"
	}
	if m.upper == nil {
		return errs.Unsupported, "a lower's file system cannot be in an overlay, or options are unknown to this kernel (see dmesg)"
	}
	up, uerr := sys.StatAt(m.upper.fd, "", 0)
	wk, werr := sys.StatAt(m.work.fd, "", 0)
	switch {
	case uerr == nil && werr == nil && up.Dev != wk.Dev:
		return errs.Usage, "upper and work directory are on different file systems"
	case within(m.work.path, m.upper.path), within(m.upper.path, m.work.path):
		return errs.Usage, "upper and work directory lie one in the other"
	}
	return errs.Unsupported, "the upper's file system (" + fsName(m.upper.fd) + ") cannot be one, or options are unknown to this kernel (see dmesg)"
}

// fsNames are file systems that people try as an upper.
var fsNames = map[int64]string{
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.FUSE_SUPER_MAGIC: "FUSE", unix.NFS_SUPER_MAGIC: "NFS",
	unix.MSDOS_SUPER_MAGIC: "FAT", unix.TMPFS_MAGIC: "tmpfs", unix.EXT4_SUPER_MAGIC: "ext4",
	unix.XFS_SUPER_MAGIC: "XFS", unix.BTRFS_SUPER_MAGIC: "btrfs",
}

func fsName(fd int) string {
	st, err := sys.Statfs(fd)
	if err != nil {
		return "unknown"
	}
	if name := fsNames[int64(st.Type)]; name != "" {
		return name
	}
	return "unknown to layerfs"
}
