package blockstore

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// hostFree returns how many bytes the file system of path has for us.
func hostFree(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// room gives up the ballast when the disk is nearly full, and refuses when
// that is not enough.
func (b *badgerIndex) room() error {
	free, err := hostFree(b.dir)
	if err != nil {
		return err
	}
	if free >= b.floor {
		return nil
	}
	if b.ballast != "" && os.Remove(b.ballast) == nil {
		if free, err = hostFree(b.dir); err != nil {
			return err
		}
	}
	if free < b.floor/4 {
		return errs.New(errs.NoSpace, "the disk of %s has %d bytes left, the index needs %d: %w", b.dir, free, b.floor/4, unix.ENOSPC)
	}
	return nil
}

// keepBallast makes the ballast file where there is plenty of space, and
// removes it where badger could find the disk full while it opens.
func (b *badgerIndex) keepBallast() {
	if b.ballast == "" {
		return
	}
	free, err := hostFree(b.dir)
	if err != nil {
		return
	}
	if free < b.floor {
		_ = os.Remove(b.ballast)
		return
	}
	if _, err := os.Lstat(b.ballast); err == nil || free < 4*b.floor {
		return
	}
	f, err := os.OpenFile(b.ballast, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Fallocate(int(f.Fd()), 0, 0, b.floor) != nil {
		_ = os.Remove(b.ballast)
	}
}
