package fusedev

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// MountConfig says what the mount is to look like. Branch lists have no
// place in it: the kernel takes one page of mount data, and everybody can
// read FsName.
type MountConfig struct {
	Mountpoint         string  // absolute
	FsName, Subtype    string  // what mountinfo shows as source and after "fuse."
	Flags              uintptr // MS_*, passed as they are
	AllowOther         bool
	DefaultPermissions bool
	MaxRead            int      // 0: the kernel's choice
	Extra              []string // further mount data, such as context=…
}

// Mount mounts a file system whose requests the returned Conn will serve.
//
// mount(2) is tried first whatever the user id is: besides root it works in
// a user namespace and with an ambient CAP_SYS_ADMIN. Only when it is not
// allowed does fusermount3 do it, with its own restrictions.
func Mount(cfg MountConfig) (*Conn, error) {
	fd, err := mountDirect(cfg)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		var refused error
		if fd, refused = mountHelper(cfg); refused != nil {
			return nil, fmt.Errorf("%w (mount(2): %w)", refused, err)
		}
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return newConn(fd, cfg.Mountpoint), nil
}

func mountDirect(cfg MountConfig) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(cfg.Mountpoint, &st); err != nil {
		return -1, fmt.Errorf("%s: %w", cfg.Mountpoint, err)
	}
	fd, err := openDevice()
	if err != nil {
		return -1, err
	}
	data := strings.Join(mountData(cfg, fd, st.Mode), ",")
	err = unix.Mount(cfg.FsName, cfg.Mountpoint, "fuse."+cfg.Subtype, cfg.Flags, data)
	if err == nil {
		return fd, nil
	}
	unix.Close(fd)
	if err == unix.ENODEV {
		return -1, errs.New(errs.Unsupported, "the kernel has no FUSE (modprobe fuse)")
	}
	return -1, fmt.Errorf("mounting on %s: %w", cfg.Mountpoint, err)
}

func openDevice() (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		return fd, nil
	case unix.ENOENT, unix.ENODEV, unix.ENXIO:
		return -1, errs.New(errs.Unsupported, "/dev/fuse is missing (modprobe fuse, or give the container the device)")
	}
	return -1, fmt.Errorf("/dev/fuse: %w", err)
}

func mountData(cfg MountConfig, fd int, rootMode uint32) []string {
	data := []string{
		fmt.Sprintf("fd=%d", fd),
		fmt.Sprintf("rootmode=%o", rootMode&unix.S_IFMT),
		fmt.Sprintf("user_id=%d", os.Geteuid()),
		fmt.Sprintf("group_id=%d", os.Getegid()),
	}
	return append(data, commonOptions(cfg)...)
}

// commonOptions are those that mount(2) and fusermount3 spell alike.
func commonOptions(cfg MountConfig) []string {
	var o []string
	if cfg.AllowOther {
		o = append(o, "allow_other")
	}
	if cfg.DefaultPermissions {
		o = append(o, "default_permissions")
	}
	if cfg.MaxRead > 0 {
		o = append(o, fmt.Sprintf("max_read=%d", cfg.MaxRead))
	}
	return append(o, cfg.Extra...)
}
