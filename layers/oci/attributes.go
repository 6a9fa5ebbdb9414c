package oci

import (
	"archive/tar"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

const (
	maxXattrName  = 255      // XATTR_NAME_MAX
	maxXattrValue = 64 << 10 // XATTR_SIZE_MAX
	// maxSparse bounds files whose holes the tar only counts: going through
	// them takes time that the one who made it did not spend.
	maxSparse = 1 << 40
	// block is the unit in which zeros become holes.
	block = 4096
)

// buildFile writes a regular file. Blocks of zeros become holes.
func (a *applier) buildFile(tmp string, h *tar.Header, data io.Reader) error {
	if err := a.checkSize(h); err != nil {
		return err
	}
	fd, err := sys.OpenIn(a.stage, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0600)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	// The size first: one that the file system cannot have is told before the work.
	if err := sys.Ftruncate(fd, h.Size); err != nil {
		if err == unix.EFBIG {
			return errs.New(errs.NoSpace, "a file of %d bytes is larger than this file system takes", h.Size)
		}
		return err
	}
	for off := int64(0); off < h.Size; {
		n, err := io.ReadFull(data, a.buf[:min(h.Size-off, int64(len(a.buf)))])
		if err != nil {
			return readError(err)
		}
		if err := writeData(fd, a.buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// checkSize refuses what cannot fit before the disk is full of half of it.
func (a *applier) checkSize(h *tar.Header) error {
	sparse := h.Typeflag == tar.TypeGNUSparse
	for k := range h.PAXRecords {
		sparse = sparse || strings.HasPrefix(k, "GNU.sparse.")
	}
	if sparse {
		if h.Size > maxSparse {
			return errs.New(errs.Unsupported, "a sparse file of %d bytes: at most %d are taken", h.Size, int64(maxSparse))
		}
		return nil
	}
	if h.Size < 1<<20 {
		return nil
	}
	st, err := sys.Statfs(a.root)
	if err != nil {
		return err
	}
	if free := st.Bavail * uint64(st.Bsize); uint64(h.Size) > free {
		return errs.New(errs.NoSpace, "needs %d bytes, %d are free", h.Size, free)
	}
	return nil
}

// writeData writes buf at off but for blocks of zeros.
func writeData(fd int, buf []byte, off int64) error {
	for len(buf) > 0 {
		n := 0
		for n < len(buf) && isZero(buf[n:min(n+block, len(buf))]) {
			n += block
		}
		n = min(n, len(buf))
		buf, off = buf[n:], off+int64(n)
		for n = 0; n < len(buf) && !isZero(buf[n:min(n+block, len(buf))]); {
			n += block
		}
		n = min(n, len(buf))
		if err := sys.PWriteAll(fd, buf[:n], off); err != nil {
			return err
		}
		buf, off = buf[n:], off+int64(n)
	}
	return nil
}

var zeros [block]byte

func isZero(b []byte) bool { return string(b) == string(zeros[:len(b)]) }

// setAttributes gives name in dirfd (dirfd itself when it is empty) what h
// says: owner, extended attributes, mode, time, in the order in which none undoes another.
func (a *applier) setAttributes(dirfd int, name string, h *tar.Header) error {
	mode := uint32(h.Mode) & 07777
	if h.Gid >= 0 {
		var err error
		if mode, err = a.setOwner(dirfd, name, h, mode); err != nil {
			return fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, err)
		}
	}
	if err := a.setXattrs(dirfd, name, h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := sys.ChmodAt(dirfd, name, mode); err != nil {
			return fmt.Errorf("mode %o: %w", mode, err)
		}
	}
	t := unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
	if err := sys.UtimesAt(dirfd, name, t, t); err != nil {
		return fmt.Errorf("time %v: %w", h.ModTime, err)
	}
	return nil
}

// setOwner returns the mode without what is only for the owner that the file
// does not get.
func (a *applier) setOwner(dirfd int, name string, h *tar.Header, mode uint32) (uint32, error) {
	err := sys.ChownAt(dirfd, name, uint32(h.Uid), uint32(h.Gid))
	if err != unix.EPERM && err != unix.EINVAL {
		return mode, err
	}
	a.owned = false
	st, err := sys.StatAt(dirfd, name, 0)
	if st.UID != uint32(h.Uid) {
		mode &^= unix.S_ISUID
	}
	if st.GID != uint32(h.Gid) {
		mode &^= unix.S_ISGID
	}
	return mode, err
}

// setXattrs makes the portable extended attributes those of h, no more.
func (a *applier) setXattrs(dirfd int, name string, h *tar.Header) error {
	want, err := xattrsOf(h)
	if err != nil {
		return err
	}
	has, err := sys.ListXattr(dirfd, name)
	if err != nil && err != unix.EOPNOTSUPP {
		return err
	}
	for _, attr := range has {
		if _, ok := want[attr]; !ok && branches.Portable(attr) {
			_ = sys.RemoveXattr(dirfd, name, attr) // what cannot be removed was inherited, as a label is
		}
	}
	names := make([]string, 0, len(want))
	for attr := range want {
		names = append(names, attr)
	}
	slices.Sort(names)
	for _, attr := range names {
		err := sys.SetXattr(dirfd, name, attr, []byte(want[attr]), 0)
		switch {
		case err == unix.EPERM || err == unix.EOPNOTSUPP || err == unix.EACCES:
			a.warn(fmt.Sprintf("%s: attribute %s left out: %v", h.Name, attr, err))
		case err == unix.ENOSPC:
			return errs.New(errs.NoSpace, "attribute %s of %d bytes does not fit: %w", attr, len(want[attr]), err)
		case err != nil:
			return fmt.Errorf("attribute %q: %w", attr, err)
		}
	}
	return nil
}

// xattrsOf returns the extended attributes in h that may be set.
func xattrsOf(h *tar.Header) (map[string]string, error) {
	want := map[string]string{}
	for k, v := range h.PAXRecords {
		attr, ok := strings.CutPrefix(k, xattrRecord)
		if !ok {
			continue
		}
		attr = unescaper.Replace(attr)
		switch {
		case attr == "" || len(attr) > maxXattrName || strings.IndexByte(attr, 0) >= 0:
			return nil, errs.New(errs.Corrupt, "an extended attribute with a name of %d bytes", len(attr))
		case len(v) > maxXattrValue:
			return nil, errs.New(errs.Corrupt, "attribute %s of %d bytes: %d are possible", attr, len(v), maxXattrValue)
		case branches.Portable(attr):
			want[attr] = v
		}
	}
	return want, nil
}
