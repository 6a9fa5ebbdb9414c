package branches

import (
	"fmt"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/mounts"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Work is the work directory of an upper: WORKDIR/work for temporaries,
// empty after an unmount, and WORKDIR/layerfs for indexes that can be rebuilt.
type Work struct {
	Tmp  int    // O_PATH descriptor of WORKDIR/work
	Keep int    // O_PATH descriptor of WORKDIR/layerfs
	root int    // descriptor of WORKDIR, which carries the lock
	dir  string // where WORKDIR is, for messages. Immutable.
	lone bool   // whiteouts are no links of each other. Changes only with the branch's mode.
	mark bool
	// Ordered: a copy that was written out before it is renamed into the upper is
	// whole after a power cut, see sys.Ordered. Immutable.
	Ordered bool
	// Unclean: the last mount with this directory did not end as it should,
	// or asked for the records in Keep to be looked through. Immutable.
	Unclean  bool
	distrust atomic.Bool // the records are to be looked through at the next mount
	next     atomic.Uint64
	spare    atomic.Uint64 // number of the whiteout that others are links of, 0: none
}

// lockWait is how long a mount waits for an ending daemon to let go.
const lockWait = 2 * time.Second

// openUpper makes b ready to be changed; b keeps its times.
func (b *Branch) openUpper(cfg Config) error {
	return sys.KeepTimes(b.Root, func() error {
		w, err := openWork(b, cfg)
		if err != nil {
			return err
		}
		b.Work = w
		if b.Format, err = chooseFormat(b, w, cfg); err != nil {
			return err
		}
		if cfg.Volatile {
			return w.markVolatile()
		}
		return nil
	})
}

func openWork(upper *Branch, cfg Config) (*Work, error) {
	w := &Work{Tmp: -1, Keep: -1, root: -1, dir: cfg.WorkDir, lone: upper.Attr.LoneMarks}
	var err error
	switch {
	case w.dir != "":
		w.root, err = unix.Open(w.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	case !cfg.AufsStyle:
		return nil, errs.New(errs.Usage, "upperdir %s needs a workdir= on the same file system", upper.Path)
	default:
		w.dir = filepath.Join(upper.Path, whiteout.PrivateDir)
		if err := sys.Mkdir(upper.Root, whiteout.PrivateDir, 0700); err != nil && err != unix.EEXIST {
			return nil, errs.New(errs.Failed, "branch %s cannot be written: %w", upper.Path, err)
		}
		w.root, err = sys.OpenIn(upper.Root, whiteout.PrivateDir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return nil, errs.New(errs.Of(err), "work directory %s: %w", w.dir, err)
	}
	if err := w.open(w.dir, upper); err != nil {
		w.release()
		return nil, err
	}
	return w, nil
}

func (w *Work) open(dir string, upper *Branch) error {
	st, err := sys.FStat(w.root)
	if err != nil {
		return errs.New(errs.Failed, "work directory %s: %w", dir, err)
	}
	w.Ordered = sys.Ordered(w.root)
	if st.Dev != upper.Dev {
		return errs.New(errs.Usage, "work directory %s and upper %s are on different file systems: a rename between them is needed", dir, upper.Path)
	}
	if err := w.lock(dir); err != nil {
		return err
	}
	if point := mounts.OverlayWriting(upper.Path, realDir(dir)); point != "" {
		return errs.New(errs.Busy, "upper %s or work directory %s is in use by the overlay on %s: unmount that one, or mount with ro", upper.Path, dir, point)
	}
	if err := sys.RemoveAll(w.root, "work"); err != nil {
		return errs.New(errs.Failed, "work directory %s cannot be cleaned: %w", dir, err)
	}
	if w.Tmp, err = makeDir(w.root, "work"); err == nil {
		w.Keep, err = makeDir(w.root, "layerfs")
	}
	if err == nil {
		err = w.markLive()
	}
	if err != nil {
		return errs.New(errs.Failed, "work directory %s: %w", dir, err)
	}
	return probeRename(w, upper, dir)
}

func (w *Work) markLive() error {
	err := sys.Mknod(w.Keep, records.LiveMark, unix.S_IFREG|0600, 0)
	w.Unclean = err == unix.EEXIST
	w.distrust.Store(w.Unclean)
	if w.Unclean {
		return nil
	}
	return err
}

// Trust says that the records in Keep have been looked through.
func (w *Work) Trust() { w.distrust.Store(false) }

// Distrust makes the next mount look through the records in Keep.
func (w *Work) Distrust() { w.distrust.Store(true) }

// probeRename makes sure that names can be moved from work to the upper: one
// device is not enough where they are different mounts.
func probeRename(w *Work, upper *Branch, dir string) error {
	name, probe := w.Name(), whiteout.Prefix+".wh.probe"
	if err := sys.Mknod(w.Tmp, name, unix.S_IFREG|0600, 0); err != nil {
		return errs.New(errs.Of(err), "work directory %s cannot be written: %w", dir, err)
	}
	if err := sys.Rename(w.Tmp, name, upper.Root, probe, 0); err != nil {
		_ = sys.Unlink(w.Tmp, name)
		if err == unix.EXDEV {
			return errs.New(errs.Usage, "work directory %s and upper %s are on different mounts: a rename between them is needed", dir, upper.Path)
		}
		return errs.New(errs.Of(err), "upper %s cannot be written: %w", upper.Path, err)
	}
	return sys.Unlink(upper.Root, probe)
}

// makeDir makes a directory of the work directory. What is made inside must not
// inherit the group or the default ACL that some directory above lends.
func makeDir(at int, name string) (int, error) {
	if err := sys.Mkdir(at, name, 0700); err != nil && err != unix.EEXIST {
		return -1, err
	}
	fd, err := sys.OpenDir(at, name)
	if err != nil {
		return -1, err
	}
	err = sys.RemoveXattr(fd, "", "system.posix_acl_default")
	if err == nil || err == unix.ENODATA || err == unix.EOPNOTSUPP {
		err = sys.ChmodAt(fd, "", 0700)
	}
	if err != nil {
		sys.Close(fd)
		return -1, err
	}
	return fd, nil
}

// lock takes the work directory for this mount alone.
func (w *Work) lock(dir string) error {
	for deadline := time.Now().Add(lockWait); ; time.Sleep(20 * time.Millisecond) {
		err := sys.Flock(w.root)
		if err == nil {
			return nil
		}
		if err != unix.EWOULDBLOCK {
			return errs.New(errs.Failed, "work directory %s cannot be locked: %w", dir, err)
		}
		if time.Now().After(deadline) {
			return errs.New(errs.Busy, "work directory %s is in use by another writable mount: unmount that one, or mount with ro", dir)
		}
	}
}

func (w *Work) markVolatile() error {
	dir := w.dir
	if _, err := sys.StatAt(w.Keep, records.VolatileMark, 0); err == nil {
		return errs.New(errs.Corrupt, "the last volatile mount of %s did not end cleanly, its changes may be incomplete: start with a fresh upper, or remove %s to use it as it is",
			dir, filepath.Join(dir, "layerfs", records.VolatileMark))
	}
	if err := sys.Mknod(w.Keep, records.VolatileMark, unix.S_IFREG|0600, 0); err != nil {
		return errs.New(errs.Failed, "work directory %s: %w", dir, err)
	}
	w.mark = true
	return nil
}

// Name returns a name for a temporary that no other has had in this mount.
func (w *Work) Name() string {
	return "#" + strconv.FormatUint(w.next.Add(1), 16)
}

// Discard removes a temporary and all in it.
func (w *Work) Discard(name string) {
	_ = sys.RemoveAll(w.Tmp, name) // the next mount cleans what cannot be removed now
}

// Whiteout makes a whiteout of format f under a temporary name. Whiteouts
// are links of one inode as far as the file system's link limit allows.
func (w *Work) Whiteout(f whiteout.Format) (string, error) {
	name := w.Name()
	if n := w.spare.Load(); n != 0 {
		if sys.Link(w.Tmp, spareName(n), w.Tmp, name) == nil {
			return name, nil
		}
		w.spare.CompareAndSwap(n, 0) // EMLINK, or no links here: make a new one
		_ = sys.Unlink(w.Tmp, spareName(n))
	}
	if err := f.Make(w.Tmp, name); err != nil {
		return "", err
	}
	n := w.next.Add(1)
	if !w.lone && sys.Link(w.Tmp, name, w.Tmp, spareName(n)) == nil && !w.spare.CompareAndSwap(0, n) {
		_ = sys.Unlink(w.Tmp, spareName(n))
	}
	return name, nil
}

// LinkWhiteout puts a whiteout at name in dirfd, where nothing is; EEXIST
// when something is.
func (w *Work) LinkWhiteout(f whiteout.Format, dirfd int, name string) error {
	if n := w.spare.Load(); n != 0 {
		err := sys.Link(w.Tmp, spareName(n), dirfd, name)
		if err == nil || err == unix.EEXIST {
			return err
		}
	}
	tmp, err := w.Whiteout(f)
	if err != nil {
		return err
	}
	if err := sys.Rename(w.Tmp, tmp, dirfd, name, sys.RenameNoReplace); err != nil {
		_ = sys.Unlink(w.Tmp, tmp)
		return err
	}
	return nil
}

func spareName(n uint64) string { return fmt.Sprintf("wh%x", n) }

// close empties the work directory and lets it go.
func (w *Work) close() error {
	var err error
	if w.Tmp >= 0 {
		entries, rerr := sys.ReadDirAt(w.Tmp)
		err = rerr
		for _, e := range entries {
			if rerr := sys.RemoveAll(w.Tmp, e.Name); rerr != nil && err == nil {
				err = fmt.Errorf("cleaning the work directory: %w", rerr)
			}
		}
	}
	if w.mark && err == nil {
		err = sys.Unlink(w.Keep, records.VolatileMark)
	}
	if w.Keep >= 0 && err == nil && !w.distrust.Load() {
		if err = sys.Unlink(w.Keep, records.LiveMark); err == unix.ENOENT {
			err = nil
		}
	}
	w.release()
	return err
}

func (w *Work) release() {
	for _, fd := range []int{w.Tmp, w.Keep, w.root} {
		if fd >= 0 {
			sys.Close(fd)
		}
	}
}
