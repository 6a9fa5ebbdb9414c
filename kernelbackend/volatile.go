package kernelbackend

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
)

// notVolatile looks for marks of volatile mounts in the work directory, that
// in keep (-1: there is no such directory) and the kernel's own. What the kernel
// has left during this boot of the machine is no loss: the mark goes.
func (m *mounting) notVolatile(keep int) error {
	boot, err := "", error(unix.ENOENT)
	if keep >= 0 {
		boot, err = readAll(keep, records.VolatileMark)
	}
	if err != nil && err != unix.ENOENT {
		return errs.New(errs.Failed, "work directory %s: %w", m.work.path, err)
	}
	ours := err == nil
	kernels := exists(filepath.Join(m.work.path, records.KernelVolatile))
	switch {
	case ours && boot != bootID():
		return m.lost(filepath.Join(records.KeepDir, records.VolatileMark))
	case kernels && !ours:
		return m.lost(records.KernelVolatile)
	case ours:
		return m.forgetVolatile(keep)
	}
	return nil
}

// ErrVolatile is wrapped by the error about an upper whose last volatile mount
// did not end cleanly.
var ErrVolatile = errors.New("its changes may be incomplete")

func (m *mounting) lost(mark string) error {
	return errs.New(errs.Corrupt, "the last volatile mount of %s did not end cleanly, %w: start with a fresh upper, or remove %s to use it as it is",
		m.work.path, ErrVolatile, filepath.Join(m.work.path, mark))
}

// forgetVolatile removes both marks.
func (m *mounting) forgetVolatile(keep int) error {
	err := forgetKernelVolatile(m.work.fd)
	if err == nil {
		err = sys.Unlink(keep, records.VolatileMark)
	}
	if err != nil {
		return errs.New(errs.Failed, "work directory %s: %w", m.work.path, err)
	}
	return nil
}

// forgetKernelVolatile removes the kernel's mark, and nothing that an overlay
// could be using which is still mounted in another mount namespace.
func forgetKernelVolatile(work int) error {
	marks := path.Dir(records.KernelVolatile) // work/incompat
	fd, err := sys.OpenDir(work, path.Dir(marks))
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return sys.RemoveAll(fd, path.Base(marks))
}

// note writes the small file name into WORKDIR/layerfs.
func (m *mounting) note(name, text string) error {
	err := writeNote(m.work.fd, name, text)
	if err != nil {
		return errs.New(errs.Of(err), "work directory %s: %w", m.work.path, err)
	}
	return nil
}

// forgetNotes removes the notes of a mount that did not come about, in a work
// directory that nobody else uses.
func (m *mounting) forgetNotes() {
	if m.work == nil {
		return
	}
	if m.Volatile {
		_ = forgetKernelVolatile(m.work.fd) // it may have come so far
	}
	keep, err := sys.OpenDir(m.work.fd, records.KeepDir)
	if err != nil {
		return
	}
	defer sys.Close(keep)
	for _, name := range []string{records.VolatileMark, records.LowersList} {
		_ = sys.Unlink(keep, name)
	}
	_ = sys.Rmdir(m.work.fd, records.KeepDir) // unless the FUSE union has made it
}

func writeNote(work int, name, text string) error {
	if err := sys.Mkdir(work, records.KeepDir, 0700); err != nil && err != unix.EEXIST {
		return err
	}
	keep, err := sys.OpenDir(work, records.KeepDir)
	if err != nil {
		return err
	}
	defer sys.Close(keep)
	fd, err := sys.OpenIn(keep, name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0600)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return sys.PWriteAll(fd, []byte(text), 0)
}

func readAll(dirfd int, name string) (string, error) {
	fd, err := sys.OpenIn(dirfd, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer sys.Close(fd)
	st, err := sys.FStat(fd)
	if err != nil {
		return "", err
	}
	buf := make([]byte, st.Size)
	n, err := sys.PRead(fd, buf, 0)
	return string(buf[:n]), err
}

// bootID is different after each boot of the machine.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown" // never equal to one that was written
	}
	return strings.TrimSpace(string(id))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
