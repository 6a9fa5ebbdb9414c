package kernelbackend

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// Overlay says what overlay to mount. Directories are absolute or relative to
// the current one.
type Overlay struct {
	Lowers      []string // top first
	Upper, Work string   // "" for a mount that is only read
	Mountpoint  string
	ReadOnly    bool // Upper, if any, is only read, and Work left alone: the upper may be mounted elsewhere

	// UserXattr keeps the records in user. instead of trusted. attributes, as
	// it is always done in a user namespace.
	UserXattr   bool
	RedirectDir bool // renames directories of lowers with a redirect; not possible with user. attributes
	Metacopy    bool // copies attributes only where that is enough
	Index       bool // hard links of lower files survive the first change
	Volatile    bool // never syncs; see MountOverlay

	Source string  // shown as the mount's source; "" for "layerfs"
	Flags  uintptr // MS_NOSUID and the like, of the mount
}

// MountOverlay mounts the kernel's overlay in this process's mount namespace.
// There is no limit on the length of paths and only the kernel's, 500, on lowers.
//
// What the upper is written in is recorded there as the FUSE union does it, and
// an upper or lower that the kernel would read wrongly is refused (errs.Corrupt,
// the message names the option that is needed). Other classes: NotFound for
// a missing directory, Usage for a contradiction, Busy for an upper in use,
// Unsupported when this kernel, file system or user cannot have the mount.
//
// A volatile mount leaves a mark until UnmountOverlay. A mark that is left
// refuses the next mount, unless the machine has not been rebooted since:
// then all that was written is still there.
func MountOverlay(o Overlay) error {
	m, err := open(o)
	if err != nil {
		return err
	}
	defer m.close()
	if err := m.checkPlaces(); err != nil {
		return err
	}
	for _, b := range m.branches() {
		if err := m.agrees(b); err != nil {
			return err
		}
	}
	if m.upper == nil {
		return m.mount()
	}
	if err = m.claim(); err == nil {
		err = m.mount()
	}
	if err != nil {
		m.unrecord()
	}
	return err
}

// Ready tells cheaply, and not for sure, whether this process can mount an
// overlay at all; the error is that of MountOverlay.
func Ready() error {
	fs, err := sys.FsOpen("overlay")
	switch err {
	case nil:
		return fs.Close()
	case unix.ENODEV, unix.EPERM:
		class, why := (&mounting{}).why(err.(unix.Errno))
		return errs.New(class, "the kernel's overlay cannot be mounted: %w: %s", err, why)
	}
	return nil // an old kernel
}

// userXattr reports whether records lie in user. attributes.
func (o *Overlay) userXattr() bool { return o.UserXattr || sys.InUserNamespace() }

// check finds contradictions that the kernel answers with a mere EINVAL.
func (o *Overlay) check() error {
	user := o.userXattr()
	switch {
	case len(o.Lowers) == 0 && (o.Upper == "" || !o.ReadOnly):
		return errs.New(errs.Usage, "the kernel's overlay needs a lower directory")
	case o.Upper != "" && o.Work == "" && !o.ReadOnly:
		return errs.New(errs.Usage, "upper %s needs a work directory on the same file system", o.Upper)
	case user && o.RedirectDir:
		return errs.New(errs.Unsupported, "the kernel's overlay renames no lower directories (redirect_dir=on) with user. attributes, which a user namespace has to use: use backend=fuse")
	case user && o.Metacopy:
		return errs.New(errs.Unsupported, "the kernel's overlay has no metacopy=on with user. attributes")
	}
	return nil
}

// parameters are those of the kernel's overlay, but for its directories. What
// could be switched on by a module parameter is said in any case.
func (o *Overlay) parameters() []string {
	if o.userXattr() {
		return append([]string{"userxattr"}, o.common()...)
	}
	redirect := "redirect_dir=follow"
	if o.RedirectDir || o.Metacopy {
		redirect = "redirect_dir=on" // metacopy=on needs it
	}
	return append([]string{redirect, "metacopy=" + onOff(o.Metacopy)}, o.common()...)
}

func (o *Overlay) common() []string {
	list := []string{"xino=auto"}
	if o.Upper != "" && !o.ReadOnly {
		list = append(list, "index="+onOff(o.Index))
		if o.Volatile {
			list = append(list, "volatile")
		}
	}
	return list
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func (o *Overlay) source() string {
	if o.Source == "" {
		return "layerfs"
	}
	return o.Source
}

// attrs are the mount's flags as fsmount(2) takes them.
func (o *Overlay) attrs() int {
	attrs := 0
	for _, f := range []struct {
		flag uintptr
		attr int
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, {unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}, {unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
		{unix.MS_NOATIME, unix.MOUNT_ATTR_NOATIME}, {unix.MS_STRICTATIME, unix.MOUNT_ATTR_STRICTATIME},
		{unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME},
	} {
		if o.flags()&f.flag != 0 {
			attrs |= f.attr
		}
	}
	return attrs
}

func (o *Overlay) flags() uintptr {
	if o.ReadOnly {
		return o.Flags | unix.MS_RDONLY
	}
	return o.Flags
}
