package kernelbackend

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/mounts"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
)

// Live is an overlay of the kernel that is mounted.
type Live struct {
	Mountpoint  string
	Lowers      []string // top first
	Upper, Work string   // "" when it is read-only
	Options     []string // all others, as the table of mounts has them
	Source      string
}

// OverlayAt returns the kernel's overlay on mountpoint, whoever has mounted it;
// ok is false when what is mounted there, if anything, is none.
func OverlayAt(mountpoint string) (l Live, ok bool, err error) {
	real, err := realPoint(mountpoint)
	if err != nil {
		return l, false, err
	}
	m, ok, err := mounts.On(real)
	if err != nil || !ok {
		return l, false, err
	}
	o, ok := m.Overlay()
	if !ok {
		return l, false, nil
	}
	l = Live{real, o.Lowers, o.Upper, o.Work, o.Options, m.Source}
	if n := len(l.Lowers) - 1; n > 0 && l.Lowers[n] == "/"+emptyLower {
		l.Lowers = l.Lowers[:n]
	}
	if len(l.Lowers) > 0 && !filepath.IsAbs(l.Lowers[0]) {
		l.Lowers = l.namedLowers()
	}
	return l, true, nil
}

// realPoint is realPath for a mountpoint. It does not ask what is mounted there,
// which may be served by a daemon that does not answer.
func realPoint(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Readlink(abs); err == nil || abs == "/" {
		return filepath.EvalSymlinks(abs)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	return filepath.Join(dir, filepath.Base(abs)), err
}

func realPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// namedLowers returns the lowers of an overlay that was mounted by short names.
func (l Live) namedLowers() []string {
	keep, err := sys.OpenRoot(filepath.Join(l.Work, records.KeepDir))
	if err != nil {
		return l.Lowers
	}
	defer sys.Close(keep)
	text, err := readAll(keep, records.LowersList)
	if list := strings.Split(text, "\x00"); err == nil && len(list)-1 == len(l.Lowers) {
		return list[:len(list)-1]
	}
	return l.Lowers
}

// volatile reports whether the overlay never syncs.
func (l Live) volatile() bool {
	for _, o := range l.Options {
		if o == "volatile" || o == "fsync=volatile" {
			return true
		}
	}
	return false
}

// UnmountOverlay unmounts the kernel's overlay on mountpoint; lazily means that
// open files stay usable and the rest is gone at once. What a volatile mount has
// not synced is synced, and its mark removed. Errors are NotFound when none is
// mounted there and Busy.
func UnmountOverlay(mountpoint string, lazy bool) error {
	l, ok, err := OverlayAt(mountpoint)
	if err != nil {
		return errs.New(errs.Of(err), "%s: %w", mountpoint, err)
	}
	if !ok {
		return errs.New(errs.NotFound, "%s: no overlay of the kernel is mounted here", mountpoint)
	}
	flags := 0
	if lazy {
		flags = unix.MNT_DETACH
	}
	switch err := sys.Unmount(l.Mountpoint, flags); err {
	case nil:
		return l.finish(lazy)
	case unix.EBUSY:
		return errs.New(errs.Busy, "%s is in use: %w", l.Mountpoint, err)
	default:
		return fmt.Errorf("unmounting %s: %w", l.Mountpoint, err)
	}
}

// finish removes what the mount has noted. A volatile one whose files are
// still open may go on not to sync, so its mark stays.
func (l Live) finish(lazy bool) error {
	if l.Work == "" || lazy {
		return nil
	}
	work, err := sys.OpenRoot(l.Work)
	if err != nil {
		return nil // gone with what was noted there
	}
	defer sys.Close(work)
	keep, err := sys.OpenDir(work, records.KeepDir)
	if err != nil {
		return nil
	}
	defer sys.Close(keep)
	_ = sys.Unlink(keep, records.LowersList)
	if boot, err := readAll(keep, records.VolatileMark); !l.volatile() || err != nil || boot != bootID() {
		return nil
	}
	if err := syncUpper(l.Upper); err != nil {
		return fmt.Errorf("writing out %s: %w", l.Upper, err)
	}
	if err := forgetKernelVolatile(work); err != nil {
		return fmt.Errorf("work directory %s: %w", l.Work, err)
	}
	return sys.Unlink(keep, records.VolatileMark)
}

func syncUpper(dir string) error {
	fd, err := sys.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return sys.SyncFS(fd)
}
