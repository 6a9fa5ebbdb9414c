package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// setup mounts, in init's mount namespace, what a command expects beside
// files, and makes all of it the root directory.
func (s *Spec) setup() error {
	if err := sys.SeparateMounts(); err != nil {
		return fmt.Errorf("a mount namespace: %w", err)
	}
	r := &rootDir{path: s.Root}
	var err error
	if r.fd, err = sys.OpenRoot(s.Root); err != nil {
		return err
	}
	defer sys.Close(r.fd)
	for _, step := range []func(*rootDir) error{s.hide, (*rootDir).mountProc, (*rootDir).mountSys, (*rootDir).mountDev, (*rootDir).mountFiles, s.mountVolumes} {
		if err := step(r); err != nil {
			return err
		}
	}
	if err := sys.ChangeRoot(s.Root); err != nil {
		return fmt.Errorf("changing the root directory to %s: %w", s.Root, err)
	}
	return nil
}

// rootDir is the root directory to be.
type rootDir struct {
	fd   int
	path string
}

// on has fn mount something on what is at name in the root directory.
func (r *rootDir) on(name string, fn func(fd int) error) error {
	fd, err := sys.OpenInRoot(r.fd, name, unix.O_PATH)
	if err == nil {
		err = fn(fd)
		sys.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("mounting on %s: %w", name, err)
	}
	return nil
}

// bind shows host at name.
func (r *rootDir) bind(name, host string, readOnly bool) error {
	return r.on(name, func(fd int) error {
		if err := sys.BindOn(fd, host); err != nil || !readOnly {
			return err
		}
		real, err := r.lookup(name)
		if err != nil {
			return err
		}
		defer sys.Close(real)
		return sys.Forbid(fdPath(real), unix.MOUNT_ATTR_RDONLY)
	})
}

// lookup opens what is at name now, that is what was mounted there last.
func (r *rootDir) lookup(name string) (int, error) { return sys.OpenInRoot(r.fd, name, unix.O_PATH) }

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// mountProc mounts the proc of this pid namespace. Where the kernel does not
// allow that, because part of /proc is covered, the caller's is shown.
func (r *rootDir) mountProc() error {
	return r.on("/proc", func(fd int) error {
		err := sys.MountOn(fd, "proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		if err == unix.EPERM {
			err = sys.BindOn(fd, "/proc")
		}
		return err
	})
}

func (r *rootDir) mountSys() error { return r.bind("/sys", "/sys", true) }

// hostNodes are the devices that everybody expects, and FUSE for one run inside another.
var hostNodes = []string{"null", "zero", "full", "random", "urandom", "tty", "fuse"}

var devLinks = map[string]string{
	"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	"core": "/proc/kcore", "ptmx": "pts/ptmx",
}

// mountDev mounts a /dev with the usual devices, which a user namespace
// cannot make but show, pseudo terminals of its own and shared memory. The terminal of
// the caller, which is not among the pseudo terminals, is /dev/console.
func (r *rootDir) mountDev() error {
	err := r.on("/dev", func(fd int) error {
		return sys.MountOn(fd, "tmpfs", "tmpfs", unix.MS_NOSUID|unix.MS_STRICTATIME, "mode=0755,size=65536k")
	})
	if err != nil {
		return err
	}
	dev, err := r.lookup("/dev")
	if err != nil {
		return err
	}
	defer sys.Close(dev)
	for _, d := range []string{"pts", "shm"} {
		if err := sys.Mkdir(dev, d, 0755); err != nil {
			return err
		}
	}
	for name, target := range devLinks {
		if err := sys.Symlink(target, dev, name); err != nil {
			return err
		}
	}
	for _, node := range hostNodes {
		if err := r.showNode(dev, node, "/dev/"+node); err != nil {
			return err
		}
	}
	if console := ownTerminal(); console != "" {
		if err := r.showNode(dev, "console", console); err != nil {
			return err
		}
	}
	if err := r.mountPts(); err != nil {
		return err
	}
	return r.on("/dev/shm", func(fd int) error {
		return sys.MountOn(fd, "shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	})
}

func (r *rootDir) showNode(dev int, name, host string) error {
	if _, err := os.Stat(host); err != nil {
		return nil // not on this machine
	}
	if err := sys.Mknod(dev, name, unix.S_IFREG|0666, 0); err != nil {
		return err
	}
	return r.bind("/dev/"+name, host, false)
}

// mountPts mounts pseudo terminals; the group tty has them where it exists.
func (r *rootDir) mountPts() error {
	return r.on("/dev/pts", func(fd int) error {
		const options = "newinstance,ptmxmode=0666,mode=0620"
		err := sys.MountOn(fd, "devpts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, options+",gid=5")
		if err == unix.EINVAL { // a group that this user namespace lacks
			err = sys.MountOn(fd, "devpts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, options)
		}
		return err
	})
}

// ownTerminal is the terminal that is standard input, output or error, "" for none.
func ownTerminal() string {
	for fd := range 3 {
		if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
			continue
		}
		if path, err := os.Readlink(fdPath(fd)); err == nil && filepath.IsAbs(path) {
			return path
		}
	}
	return ""
}

// hostFiles are the files by which names of the network are found.
func hostFiles() []string {
	var list []string
	for _, f := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if st, err := os.Stat(f); err == nil && st.Mode().IsRegular() {
			list = append(list, f)
		}
	}
	return list
}

// mountFiles shows copies of the host's files, which may be written to. They
// lie on the file system of /dev, without a name there.
func (r *rootDir) mountFiles() error {
	dev, err := r.lookup("/dev")
	if err != nil {
		return err
	}
	defer sys.Close(dev)
	for _, f := range hostFiles() {
		name := filepath.Base(f)
		if err := copyTo(dev, name, f); err != nil {
			return err
		}
		if err := r.bind(f, fdPath(dev)+"/"+name, false); err != nil {
			return err
		}
		if err := sys.Unlink(dev, name); err != nil {
			return err
		}
	}
	return nil
}

func copyTo(dirfd int, name, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	fd, err := sys.OpenIn(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0644)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return sys.PWriteAll(fd, data, 0)
}

func (s *Spec) mountVolumes(r *rootDir) error {
	for _, v := range s.Volumes {
		if err := r.bind(v.Path, v.Host, v.ReadOnly); err != nil {
			return fmt.Errorf("volume %s: %w", v.Host, err)
		}
	}
	return nil
}

// hide covers directories. What does not exist need not be hidden.
func (s *Spec) hide(r *rootDir) error {
	for _, h := range s.Hide {
		err := r.on(h, func(fd int) error {
			return sys.MountOn(fd, "tmpfs", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size=4k")
		})
		if _, lost := r.lookup(h); lost == nil && err != nil {
			return err
		}
	}
	return nil
}
