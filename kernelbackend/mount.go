package kernelbackend

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
)

// maxData is what mount(2) takes: a page with its zero byte.
var maxData = os.Getpagesize() - 1

// errOld says that this kernel's mount API does not take overlay's directories
// one by one.
const errOld = unix.ENOSYS

// mount mounts, by the newest of two ways that the kernel has.
func (m *mounting) mount() error {
	if m.upper != nil && m.Volatile {
		if err := m.note(records.VolatileMark, bootID()); err != nil {
			return err
		}
	}
	said, err := m.mountByParameters()
	if err == errOld {
		said, err = "", m.mountByOptions()
	}
	if err != nil {
		m.forgetNotes()
		return m.explain(err, said)
	}
	return nil
}

// mountByParameters hands the kernel each directory as a descriptor (Linux 6.13).
func (m *mounting) mountByParameters() (said string, err error) {
	fs, err := sys.FsOpen("overlay")
	if err != nil {
		return "", err
	}
	defer fs.Close()
	if err := m.configure(fs); err != nil {
		return fs.Log(), err
	}
	mount, err := fs.Create(m.attrs())
	if err != nil {
		return fs.Log(), err
	}
	defer sys.Close(mount)
	return "", sys.AttachMount(mount, m.point.fd)
}

func (m *mounting) configure(fs sys.NewMount) error {
	if err := fs.Set("source", m.source()); err != nil {
		return err
	}
	for _, l := range m.lowers {
		if err := fs.SetFd("lowerdir+", l.fd); err != nil {
			switch err {
			case unix.EOPNOTSUPP, unix.EINVAL, unix.EBADF: // until 6.5; until 6.12
				if l == m.lowers[0] {
					return errOld
				}
			}
			return err
		}
	}
	if m.upper != nil {
		if err := fs.SetFd("upperdir", m.upper.fd); err != nil {
			return err
		}
		if err := fs.SetFd("workdir", m.work.fd); err != nil {
			return err
		}
	} else if len(m.lowers) == 1 {
		if err := m.secondLower(fs); err != nil {
			return err
		}
	}
	for _, p := range m.parameters() {
		if err := setParameter(fs, p); err != nil {
			return err
		}
	}
	return nil
}

// emptyLower is the name by which the table of mounts shows the lower that
// secondLower adds.
const emptyLower = ".layerfs-empty"

// secondLower gives the overlay an empty lower below the only one: "at least 2
// lowerdir are needed while upperdir nonexistent".
func (m *mounting) secondLower(fs sys.NewMount) error {
	tmpfs, err := sys.FsOpen("tmpfs")
	if err != nil {
		return err
	}
	defer tmpfs.Close()
	if m.empty, err = tmpfs.Create(0); err != nil {
		return err
	}
	if err := sys.Mkdir(m.empty, emptyLower, 0755); err != nil {
		return err
	}
	dir, err := sys.OpenDir(m.empty, emptyLower)
	if err != nil {
		return err
	}
	defer sys.Close(dir)
	return fs.SetFd("lowerdir+", dir)
}

func setParameter(fs sys.NewMount, p string) error {
	key, value, has := strings.Cut(p, "=")
	if has {
		return fs.Set(key, value)
	}
	return fs.SetFlag(key)
}

// mountByOptions hands the kernel one page of options. Where the lowers' paths
// do not fit, short names lead to them.
func (m *mounting) mountByOptions() error {
	if m.upper == nil && len(m.lowers) == 1 {
		return errs.New(errs.Unsupported, "this kernel's overlay wants two lowers where there is no upper: add an empty directory below %s", m.lowers[0].path)
	}
	var lowers []string
	for _, l := range m.lowers {
		lowers = append(lowers, l.path)
	}
	if data := m.data(lowers); len(data) <= maxData {
		return sys.MountOn(m.point.fd, m.source(), "overlay", m.flags(), data)
	}
	if m.upper != nil { // nobody else will know them
		if err := m.note(records.LowersList, strings.Join(lowers, "\x00")+"\x00"); err != nil {
			return err
		}
	}
	return m.mountByShortNames(lowers)
}

func (m *mounting) data(lowers []string) string {
	var escaped []string
	for _, l := range lowers {
		escaped = append(escaped, escape(l))
	}
	data := m.parameters()
	data = append(data, "lowerdir="+strings.Join(escaped, ":"))
	if m.upper != nil {
		data = append(data, "upperdir="+escape(m.upper.path), "workdir="+escape(m.work.path))
	}
	return strings.Join(data, ",")
}

func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, ",", `\,`, ":", `\:`).Replace(path)
}

// mountByShortNames mounts from a directory of links called 0, 1, 2 and so on,
// where only the mounting thread stands.
func (m *mounting) mountByShortNames(lowers []string) error {
	dir, err := os.MkdirTemp("", "layerfs-lowers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	names := make([]string, len(lowers))
	for i, l := range lowers {
		names[i] = strconv.FormatInt(int64(i), 36)
		if err := os.Symlink(l, filepath.Join(dir, names[i])); err != nil {
			return err
		}
	}
	data := m.data(names)
	if len(data) > maxData {
		return errs.New(errs.Unsupported, "this kernel takes %d bytes of mount options, and %d lowers need %d", maxData, len(lowers), len(data))
	}
	fd, err := sys.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this function
		err := sys.OwnDirectory(fd)
		if err == nil {
			err = sys.MountOn(m.point.fd, m.source(), "overlay", m.flags(), data)
		}
		result <- err
	}()
	return <-result
}
