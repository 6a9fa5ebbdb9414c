package kernelbackend

import (
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/fusedev"
	"github.com/layerfs/layerfs/internal/sys"
)

// probeMapper opens device-mapper's control node, which may be there without
// device-mapper, and asks for the targets, which loads their module.
func probeMapper(string) Backend {
	const control = "/dev/mapper/control"
	fd, err := unix.Open(control, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
	case unix.ENODEV, unix.ENXIO:
		return no("%s is there, but the kernel has no device-mapper (modprobe dm_mod)", control)
	case unix.ENOENT:
		return no("%s is missing (modprobe dm_mod)", control)
	case unix.EACCES, unix.EPERM:
		return no("%s: %w: that takes root", control, err)
	default:
		return no("%s: %w", control, err)
	}
	defer sys.Close(fd)
	for _, target := range []string{"thin-pool", "thin"} {
		switch err := sys.HasTarget(fd, target); err {
		case nil:
		case unix.EINVAL, unix.ENXIO:
			return no("device-mapper has no target %q (modprobe dm_thin_pool)", target)
		case unix.EPERM, unix.EACCES:
			return no("device-mapper: %w: that takes root", err)
		default:
			return no("device-mapper, asked for target %q: %w", target, err)
		}
	}
	return Backend{OK: true}
}

func probeFUSE(dir string) Backend {
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return no("/dev/fuse: %w", err)
	}
	sys.Close(device)
	_, helper := exec.LookPath("fusermount3")
	file, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		return no("%w", err)
	}
	defer file.Close()
	point := filepath.Join(dir, "m")
	if err := os.Mkdir(point, 0755); err != nil {
		return no("%w", err)
	}
	noPassthrough, err := fusedev.Probe(point, int(file.Fd()))
	if err != nil {
		return no("%w", err)
	}
	return Backend{OK: true, Features: []Feature{feature("fusermount3", helper), feature("passthrough", noPassthrough)}}
}

func probeLoop(dir string) Backend {
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return no("/dev/loop-control: %w", err)
	}
	defer sys.Close(control)
	file, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		return no("%w", err)
	}
	defer file.Close()
	if err := file.Truncate(1 << 20); err != nil {
		return no("%w", err)
	}
	for range 10 { // others may take the same free device
		if err = sys.LoopTry(control, int(file.Fd())); err != unix.EBUSY {
			break
		}
	}
	if err != nil {
		return no("no loop device can be made: %w", err)
	}
	return Backend{OK: true}
}

func probeReflink(dir string) Backend {
	var files [2]*os.File
	for i, name := range []string{"a", "b"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return no("%w", err)
		}
		defer f.Close()
		files[i] = f
	}
	if _, err := files[0].WriteString("some data"); err != nil {
		return no("%w", err)
	}
	if err := sys.Reflink(int(files[1].Fd()), int(files[0].Fd())); err != nil {
		return no("files of %s cannot share data (%s): %w", filepath.Dir(filepath.Dir(dir)), fsName(int(files[0].Fd())), err)
	}
	return Backend{OK: true}
}

func probeFUSE2FS(string) Backend {
	if _, err := exec.LookPath("fuse2fs"); err != nil {
		return no("%w (Debian package fuse2fs)", err)
	}
	return Backend{OK: true}
}
