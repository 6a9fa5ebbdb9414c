package union

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Any way for a process in the mount to make a .wh. name or an overlay
// attribute is a way to delete what is not its own (podman #3582).
func TestReservedNames(t *testing.T) {
	for _, dialect := range []string{"overlay", "aufs"} {
		b := newBox(t)
		put(t, b.lower, "f=1", ".wh.x=", "d/")
		umount := b.mount("whiteout=" + dialect)
		m := b.mnt
		_, err := os.Lstat(m + "/.wh.x")
		require.ErrorIs(t, err, unix.ENOENT)
		_, err = os.OpenFile(m+"/.wh.f", os.O_CREATE|os.O_RDWR, 0644)
		require.ErrorIs(t, err, unix.EPERM)
		require.ErrorIs(t, os.Mkdir(m+"/.wh.d", 0755), unix.EPERM)
		require.ErrorIs(t, os.Symlink("x", m+"/.wh.f"), unix.EPERM)
		require.ErrorIs(t, os.Link(m+"/f", m+"/.wh.f"), unix.EPERM)
		require.ErrorIs(t, os.Rename(m+"/f", m+"/.wh.f"), unix.EPERM)
		require.ErrorIs(t, os.Rename(m+"/.wh.x", m+"/y"), unix.ENOENT)
		require.ErrorIs(t, os.Remove(m+"/.wh.x"), unix.ENOENT)
		require.ErrorIs(t, unix.Mknod(m+"/.wh.f", unix.S_IFREG|0600, 0), unix.EPERM)
		require.ErrorIs(t, unix.Mknod(m+"/dev0", unix.S_IFCHR, 0), unix.EPERM)
		require.ErrorIs(t, unix.Renameat2(unix.AT_FDCWD, m+"/f", unix.AT_FDCWD, m+"/d/.wh.f", unix.RENAME_NOREPLACE), unix.EPERM)
		fd, err := unix.Open(m, unix.O_TMPFILE|unix.O_RDWR, 0600)
		require.NoError(t, err)
		require.ErrorIs(t, unix.Linkat(unix.AT_FDCWD, procFd(fd), unix.AT_FDCWD, m+"/.wh.f", unix.AT_SYMLINK_FOLLOW), unix.EPERM)
		unix.Close(fd)
		require.Equal(t, []string{"d", "f"}, ls(t, m))
		umount()
	}
}

func TestReservedXattrs(t *testing.T) {
	b := newBox(t)
	put(t, b.lower, "f=1", "d/x=")
	require.NoError(t, unix.Lsetxattr(b.lower+"/f", "user.overlay.origin", []byte("x"), 0))
	require.NoError(t, unix.Lsetxattr(b.lower+"/f", "user.mine", []byte("x"), 0))
	b.mount()
	var buf [200]byte
	for _, a := range []string{"user.overlay.origin", "user.overlay.opaque", "user.fuseoverlayfs.opaque", "user.layerfs.format", "user.containers.override_stat", "trusted.overlay.opaque", "trusted.layerfs.origin"} {
		_, err := unix.Lgetxattr(b.mnt+"/f", a, buf[:])
		require.ErrorIs(t, err, unix.ENODATA, a)
		require.ErrorIs(t, unix.Lsetxattr(b.mnt+"/d", a, []byte("y"), 0), unix.EPERM, a)
		require.ErrorIs(t, unix.Lremovexattr(b.mnt+"/f", a), unix.EPERM, a)
	}
	_, err := unix.Lgetxattr(b.mnt+"/f", "user.absent", buf[:])
	require.ErrorIs(t, err, unix.ENODATA)
	n, err := unix.Llistxattr(b.mnt+"/f", buf[:])
	require.NoError(t, err)
	require.Equal(t, "user.mine\x00", string(buf[:n]))
	appendTo(t, b.mnt+"/f", "+")
	_, err = unix.Lgetxattr(b.upper+"/f", "user.overlay.origin", buf[:])
	require.ErrorIs(t, err, unix.ENODATA, "a reserved attribute was copied up")
}
