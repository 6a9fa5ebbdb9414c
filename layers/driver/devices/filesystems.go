package devices

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/mounts"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
)

// fileSystems makes and mounts the file systems in devices: by the kernel for root,
// by fuse2fs for an ordinary user.
type fileSystems struct {
	o      *Options
	kernel bool
}

// run runs a program; what it says is in the error.
func run(name string, args ...string) error {
	if err := sys.Step("exec " + name); err != nil {
		return err
	}
	cmd := exec.Command(tool(name), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.Unsupported, "%s is not installed", name)
	}
	if err != nil {
		said := strings.Join(strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' }), "; ")
		return &toolError{fmt.Errorf("%s: %w: %s", name, err, said), err}
	}
	return nil
}

// toolError is the failure of a program, with its exit code inside.
type toolError struct {
	error
	exit error
}

func (e *toolError) Unwrap() error { return e.exit }

// tool finds a program, also where an ordinary user's PATH does not lead.
func tool(name string) string {
	for _, dir := range []string{"", "/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	return name
}

// make makes the file system that dm.fs and dm.mkfsarg ask for.
func (f fileSystems) make(path string) error {
	args := append([]string{}, f.o.MkfsArgs...)
	if f.o.FS == "xfs" {
		if !f.kernel {
			return errs.New(errs.Unsupported, "dm.fs=xfs: an ordinary user can mount ext4 only, by fuse2fs")
		}
		return run("mkfs.xfs", append(args, "-f", "-q", path)...)
	}
	// Docker had the inode tables written, since the kernel would do it later, in
	// every snapshot. A new thin device reads as zeros without that.
	extended := "nodiscard,assume_storage_prezeroed=1"
	if !f.kernel {
		extended += fmt.Sprintf(",root_owner=%d:%d", os.Geteuid(), os.Getegid())
		args = append(args, "-O", "^has_journal") // fuse2fs writes none
	}
	return run("mkfs.ext4", append(args, "-E", extended, "-F", "-q", path)...)
}

// mount mounts the file system in path, a block device or a file, on at, and returns
// where the tree is then.
func (f fileSystems) mount(path, at string, readOnly bool) (root string, err error) {
	if !f.kernel {
		return at, f.mountFuse(path, at, readOnly, "modules=subdir,subdir=/"+rootfsName)
	}
	return filepath.Join(at, rootfsName), f.mountKernel(path, at, readOnly)
}

// rootfsName is where the tree is in its file system.
const rootfsName = "rootfs"

// mountWhole mounts all of the file system.
func (f fileSystems) mountWhole(path, at string) error {
	if !f.kernel {
		return f.mountFuse(path, at, false)
	}
	return f.mountKernel(path, at, false)
}

// mounted returns where the file system in path is mounted, and where the tree is then;
// the kernel's would be on at.
func (f fileSystems) mounted(path, at string) (point, root string) {
	table, err := mounts.Table()
	if err != nil {
		return "", ""
	}
	for _, m := range table {
		switch {
		case f.kernel && m.Point == at:
			return at, filepath.Join(at, rootfsName)
		case !f.kernel && path != "" && m.Source == path:
			return m.Point, m.Point
		}
	}
	return "", ""
}

func (f fileSystems) mountKernel(path, at string, readOnly bool) error {
	o := []string{}
	if f.o.MountOptions != "" {
		o = append(o, f.o.MountOptions)
	}
	if f.o.FS == "xfs" {
		o = append(o, "nouuid") // a snapshot has the uuid of its origin
	}
	if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
		o = append(o, "loop")
	}
	if readOnly {
		o = append(o, "ro")
	}
	args := []string{"-t", f.o.FS}
	if len(o) > 0 {
		args = append(args, "-o", strings.Join(o, ","))
	}
	if err := run("mount", append(args, path, at)...); err != nil {
		return err
	}
	if f.o.FS == "xfs" && f.o.XFSNoSpaceMaxRetries != "" {
		if err := f.setRetries(path); err != nil {
			return errors.Join(err, f.unmount(at))
		}
	}
	return nil
}

// setRetries tells xfs how often to try again when the pool is full; 0 has it give up,
// which is better than hanging for ever.
func (f fileSystems) setRetries(path string) error {
	file := "/sys/fs/xfs/" + filepath.Base(path) + "/error/metadata/ENOSPC/max_retries"
	if err := sys.WriteFile(file, []byte(f.o.XFSNoSpaceMaxRetries), 0); err != nil {
		return fmt.Errorf("dm.xfs_nospace_max_retries: %w", err)
	}
	return nil
}

// fsckDamaged is from which exit code on e2fsck has not mended everything.
const fsckDamaged = 4

// mountFuse mounts ext4 by fuse2fs. It has no journal, so one that was not unmounted is
// checked first.
func (f fileSystems) mountFuse(path, at string, readOnly bool, more ...string) error {
	var exit *exec.ExitError
	if err := run("e2fsck", "-p", path); errors.As(err, &exit) && exit.ExitCode() >= fsckDamaged {
		err = run("e2fsck", "-f", "-y", path)
		if errors.As(err, &exit) && exit.ExitCode() >= fsckDamaged {
			return errs.New(errs.Corrupt, "the file system cannot be mended: %w", err)
		}
	} else if err != nil && !errors.As(err, &exit) {
		return err
	}
	o := "fakeroot,default_permissions"
	if f.o.MountOptions != "" {
		o += "," + f.o.MountOptions
	}
	if readOnly {
		o += ",ro"
	}
	return run("fuse2fs", path, at, "-o", strings.Join(append([]string{o}, more...), ","))
}

// unmount unmounts the file system on at and waits until whoever served it is gone.
func (f fileSystems) unmount(at string) error {
	if f.kernel {
		return driver.Unmount(at)
	}
	server := serverOf(at)
	if err := run("fusermount3", "-u", "--", at); err != nil {
		if strings.Contains(strings.ToLower(err.Error()), "busy") {
			return errs.New(errs.Busy, "%s is in use", at)
		}
		return err
	}
	if server >= 0 {
		sys.AwaitEnd(server, serverTime)
	}
	return nil
}

// flush brings what was written into the file system on at to its device. fuse2fs keeps
// blocks for itself until it ends, whatever it is asked: false.
func (f fileSystems) flush(at string) (bool, error) {
	if !f.kernel {
		return false, nil
	}
	fd, err := sys.OpenRoot(at)
	if err != nil {
		return false, err
	}
	defer sys.Close(fd)
	if err := sys.SyncFS(fd); err != nil {
		return false, fmt.Errorf("writing out %s: %w", at, err)
	}
	return true, nil
}

// serverOf returns a descriptor of the fuse2fs that serves at, -1 when it is not found.
func serverOf(at string) int {
	list, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range list {
		args, _ := os.ReadFile(p)
		if f := strings.Split(string(args), "\x00"); len(f) > 2 && filepath.Base(f[0]) == "fuse2fs" && f[2] == at {
			var pid int
			if _, err := fmt.Sscanf(p, "/proc/%d/", &pid); err == nil {
				if fd, err := unix.PidfdOpen(pid, 0); err == nil {
					return fd
				}
			}
		}
	}
	return -1
}

// serverTime is how long a server may take to write what it has and to end.
const serverTime = 60 * time.Second

// grow makes the file system as large as its device.
func (f fileSystems) grow(path, at string) error {
	if f.o.FS != "xfs" {
		var exit *exec.ExitError
		if err := run("e2fsck", "-f", "-p", path); err != nil && !(errors.As(err, &exit) && exit.ExitCode() < fsckDamaged) {
			return err
		}
		return run("resize2fs", path)
	}
	if err := f.mountWhole(path, at); err != nil {
		return err
	}
	return errors.Join(run("xfs_growfs", at), f.unmount(at))
}
