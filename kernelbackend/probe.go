package kernelbackend

import (
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// Backend is one thing that this machine has or lacks.
type Backend struct {
	Name     string    `json:"name"`
	OK       bool      `json:"ok"`
	Reason   string    `json:"reason,omitempty"` // what is missing, unless OK
	Features []Feature `json:"features,omitempty"`
}

// Feature is a part of a backend that it can do without.
type Feature struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"` // what is missing, unless OK
}

// Names of backends, in the order of Probe's answer.
const (
	OverlayHere     = "overlay"          // as this process, in its user namespace
	OverlayRootless = "overlay-rootless" // in a user and a mount namespace of its own
	Btrfs           = "btrfs"
	DMThin          = "dm-thin"
	FUSE            = "fuse"
	Loop            = "loop"
	Reflink         = "reflink"
	FUSE2FS         = "fuse2fs"
)

// probe is one thing that Probe tries, in a directory of its own.
type probe struct {
	name string
	try  func(dir string) Backend
}

var probes = []probe{
	{OverlayHere, overlayHere}, {OverlayRootless, overlayRootless}, {Btrfs, probeBtrfs}, {DMThin, probeMapper},
	{FUSE, probeFUSE}, {Loop, probeLoop}, {Reflink, probeReflink}, {FUSE2FS, probeFUSE2FS},
}

// Probe tries everything in the directory dir, whose file system is the one
// that matters for overlay, btrfs and reflink, and removes what it made there. It
// executes this program with ProbeCommand. The only error is that dir cannot be
// written.
func Probe(dir string) ([]Backend, error) { return probeAll(dir, "") }

// ProbeOne tries the backend called name only.
func ProbeOne(dir, name string) (Backend, error) {
	list, err := probeAll(dir, name)
	if err == nil && len(list) == 0 {
		err = errs.New(errs.Usage, "there is no backend %q", name)
	}
	if err != nil {
		return Backend{}, err
	}
	return list[0], nil
}

func probeAll(dir, only string) ([]Backend, error) {
	tmp, err := os.MkdirTemp(dir, ".layerfs-probe-")
	if err != nil {
		return nil, errs.New(errs.Of(err), "probing needs a directory that can be written: %w", err)
	}
	defer os.RemoveAll(tmp)
	if tmp, err = realPath(tmp); err != nil {
		return nil, err
	}
	chosen := slices.DeleteFunc(slices.Clone(probes), func(p probe) bool { return only != "" && p.name != only })
	list := make([]Backend, len(chosen))
	var all sync.WaitGroup
	for i, p := range chosen {
		own := filepath.Join(tmp, p.name)
		if err := os.Mkdir(own, 0755); err != nil {
			return nil, err
		}
		all.Go(func() { list[i] = p.try(own); list[i].Name = p.name })
	}
	all.Wait()
	return list, nil
}

// no is a backend that is not to be had.
func no(format string, args ...any) Backend {
	return Backend{Reason: errs.New(errs.Unsupported, format, args...).Error()}
}

func feature(name string, err error) Feature {
	if err != nil {
		return Feature{Name: name, Reason: err.Error()}
	}
	return Feature{Name: name, OK: true}
}

// openHere opens dir for what takes no O_PATH descriptor.
func openHere(dir string) (fd int, close func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return -1, nil, err
	}
	return int(f.Fd()), func() { f.Close() }, nil
}

func probeBtrfs(dir string) Backend {
	fd, closeDir, err := openHere(dir)
	if err != nil {
		return no("%w", err)
	}
	defer closeDir()
	st, err := sys.Statfs(fd)
	if err != nil {
		return no("%w", err)
	}
	if name := fsNames[int64(st.Type)]; name != "btrfs" {
		return no("%s lies on %s, not on btrfs", filepath.Dir(filepath.Dir(dir)), fsName(fd))
	}
	if err := sys.MakeSubvolume(fd, "volume"); err != nil {
		return no("no subvolume can be made: %w", err)
	}
	defer removeSubvolume(fd, "volume")
	src, closeSrc, err := openHere(filepath.Join(dir, "volume"))
	if err != nil {
		return no("%w", err)
	}
	defer closeSrc()
	if err := sys.Snapshot(fd, "snapshot", src, false); err != nil {
		return no("no snapshot can be made: %w", err)
	}
	err = sys.RemoveSubvolume(fd, "snapshot")
	if err != nil {
		_ = sys.Rmdir(fd, "snapshot")
	}
	return Backend{OK: true, Features: []Feature{feature("delete", err)}}
}

func removeSubvolume(fd int, name string) {
	if sys.RemoveSubvolume(fd, name) != nil {
		_ = sys.Rmdir(fd, name)
	}
}
