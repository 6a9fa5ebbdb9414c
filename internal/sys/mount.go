package sys

import (
	"strings"

	"golang.org/x/sys/unix"
)

// NewMount is a file system that is being set up, as the mount API of
// Linux 5.2 does it: parameter by parameter, so that no page limits them.
type NewMount struct{ fd int }

// FsOpen begins to set up a file system; ENODEV when the kernel has none of
// that type, ENOSYS when it is older than this API.
func FsOpen(fsType string) (m NewMount, err error) {
	err = retry("fsopen", func() (err error) { m.fd, err = unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC); return err })
	return m, err
}

// Set sets a parameter to a text of at most 255 bytes.
func (m NewMount) Set(key, value string) error {
	return retry("fsconfig", func() error { return unix.FsconfigSetString(m.fd, key, value) })
}

// SetFlag sets a parameter without a value.
func (m NewMount) SetFlag(key string) error {
	return retry("fsconfig", func() error { return unix.FsconfigSetFlag(m.fd, key) })
}

// SetFd sets a parameter to what is open at fd.
func (m NewMount) SetFd(key string, fd int) error {
	return retry("fsconfig", func() error { return unix.FsconfigSetFd(m.fd, key, fd) })
}

// Create creates the file system and returns a mount of it, as yet on nothing.
// attrs are MOUNT_ATTR_*.
func (m NewMount) Create(attrs int) (mount int, err error) {
	if err := retry("fsconfig", func() error { return unix.FsconfigCreate(m.fd) }); err != nil {
		return -1, err
	}
	err = retry("fsmount", func() (err error) { mount, err = unix.Fsmount(m.fd, unix.FSMOUNT_CLOEXEC, attrs); return err })
	return mount, err
}

// Log returns what the kernel has to say about the last failure, "" for nothing.
func (m NewMount) Log() string {
	var lines []string
	var buf [1024]byte
	for {
		n, err := unix.Read(m.fd, buf[:]) // one message at a time, then ENODATA
		if err != nil || n <= 0 {
			return strings.Join(lines, "; ")
		}
		line := strings.TrimSpace(string(buf[:n]))
		if _, text, ok := strings.Cut(line, " "); ok { // "e " for an error, "w " for a warning
			lines = append(lines, text)
		}
	}
}

// Close ends the setting up; what was created stays.
func (m NewMount) Close() error { return Close(m.fd) }

// AttachMount puts a mount that is on nothing on the directory open at dirfd.
func AttachMount(mount, dirfd int) error {
	return retry("move_mount", func() error {
		return unix.MoveMount(mount, "", dirfd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	})
}

// MountOn is mount(2) on the directory open at dirfd. A relative path in data
// starts where the calling thread stands.
func MountOn(dirfd int, source, fsType string, flags uintptr, data string) error {
	return retry("mount", func() error { return unix.Mount(source, ProcPath(dirfd), fsType, flags, data) })
}

// Unmount unmounts what is mounted on the absolute path point.
func Unmount(point string, flags int) error {
	return retry("umount", func() error { return unix.Unmount(point, flags|unix.UMOUNT_NOFOLLOW) })
}

// OwnDirectory makes the calling thread stand where the open directory dirfd
// is, without the rest of the process. The caller has locked the thread and
// never unlocks it, so that it ends with its goroutine.
func OwnDirectory(dirfd int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return unix.Fchdir(dirfd)
}
