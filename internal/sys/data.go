package sys

import (
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CopyData copies the first size bytes of src into the empty file dst:
// by reflink, else by copy_file_range, else by read and write. Holes stay
// holes and dst is size bytes long in the end. With out the disk begins to write a big file
// while it is being copied: for those who will wait for that.
func CopyData(dst, src int, size int64, out bool) error {
	if size == 0 {
		return nil
	}
	st, err := FStat(src)
	if err != nil {
		return err
	}
	if uint64(size) >= st.Size {
		if Reflink(dst, src) == nil {
			return nil
		}
		size = int64(st.Size)
	}
	c := copier{dst: dst, src: src, size: size}
	for off := int64(0); off < size; {
		start, end := nextData(src, off, size)
		if start >= size {
			break
		}
		for start < end {
			piece := min(end, start+copyPiece)
			if err := c.copyRange(start, piece); err != nil {
				return err
			}
			if size > copyPiece && out {
				startWriteOut(dst, start, piece-start)
			}
			start = piece
		}
		off = end
	}
	return Ftruncate(dst, size)
}

// copyPiece is how many bytes are copied before the disk begins to write them.
const copyPiece = 4 << 20

// Reflink makes the file dst share the data of the file src.
func Reflink(dst, src int) error {
	return retry("ficlone", func() error { return unix.IoctlFileClone(dst, src) })
}

// nextData returns the next stretch of data in [off, size); files that know
// no holes are one stretch.
func nextData(fd int, off, size int64) (start, end int64) {
	start, err := Seek(fd, off, unix.SEEK_DATA)
	if err == unix.ENXIO {
		return size, size
	}
	if err != nil || start < off {
		return off, size
	}
	end, err = Seek(fd, start, unix.SEEK_HOLE)
	if err != nil || end <= start || end > size {
		end = size
	}
	return start, end
}

// copier copies from one file to another.
type copier struct {
	dst, src int
	size     int64  // of the whole
	buf      []byte // of files that cannot be copied in the kernel, nil before that is known
}

func (c *copier) copyRange(start, end int64) error {
	for start < end && c.buf == nil {
		n, err := CopyFileRange(c.src, start, c.dst, start, int(end-start))
		if err != nil || n == 0 {
			// Other file system, or one of those that return 0 for what they
			// cannot copy (procfs); read and write, which also tells the real error.
			c.buf = make([]byte, min(c.size, 1<<20))
		}
		start += int64(n)
	}
	return c.byHand(start, end)
}

func (c *copier) byHand(off, end int64) error {
	for off < end {
		n, err := PRead(c.src, c.buf[:min(end-off, int64(len(c.buf)))], off)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		if err := PWriteAll(c.dst, c.buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// PRead reads at off.
func PRead(fd int, buf []byte, off int64) (n int, err error) {
	err = retry("pread", func() (err error) { n, err = unix.Pread(fd, buf, off); return err })
	return max(n, 0), err
}

// Cached reports whether the byte of a file at off can be read without waiting
// for the disk.
func Cached(fd int, off int64) bool {
	var b [1]byte
	_, err := unix.Preadv2(fd, [][]byte{b[:]}, off, unix.RWF_NOWAIT)
	return err != unix.EAGAIN
}

// ReadAhead has a range of a file read into the cache, and does not wait for it.
func ReadAhead(fd int, off, length int64) {
	_ = unix.Fadvise(fd, off, length, unix.FADV_WILLNEED) // advice
}

// ReadFullAt is PRead until p is full; io.EOF tells of the end of the file.
func ReadFullAt(fd int, p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := PRead(fd, p[n:], off+int64(n))
		if err != nil {
			return n, err
		}
		if m == 0 {
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}

// PReadV reads at off into several buffers.
func PReadV(fd int, bufs [][]byte, off int64) (n int, err error) {
	err = retry("preadv", func() (err error) { n, err = unix.Preadv(fd, bufs, off); return err })
	return max(n, 0), err
}

// PWrite writes at off and returns how much was written.
func PWrite(fd int, buf []byte, off int64) (n int, err error) {
	err = retry("pwrite", func() (err error) { n, err = unix.Pwrite(fd, buf, off); return err })
	return max(n, 0), err
}

// PWriteAll writes all of buf at off.
func PWriteAll(fd int, buf []byte, off int64) error {
	for len(buf) > 0 {
		n, err := PWrite(fd, buf, off)
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.EIO
		}
		buf, off = buf[n:], off+int64(n)
	}
	return nil
}

// CopyFileRange copies inside the kernel and returns how much was copied.
func CopyFileRange(src int, off int64, dst int, dstOff int64, length int) (n int, err error) {
	err = retry("copy_file_range", func() (err error) {
		in, out := off, dstOff
		n, err = unix.CopyFileRange(src, &in, dst, &out, length, 0)
		return err
	})
	return max(n, 0), err
}

// Ftruncate sets the length of a file.
func Ftruncate(fd int, size int64) error {
	return retry("ftruncate", func() error { return unix.Ftruncate(fd, size) })
}

// Fallocate is fallocate(2).
func Fallocate(fd int, mode uint32, off, length int64) error {
	return retry("fallocate", func() error { return unix.Fallocate(fd, mode, off, length) })
}

// Seek is lseek(2), for SEEK_DATA and SEEK_HOLE.
func Seek(fd int, off int64, whence int) (at int64, err error) {
	err = retry("lseek", func() (err error) { at, err = unix.Seek(fd, off, whence); return err })
	return at, err
}

// Fsync and Fdatasync force a file to the disk.
func Fsync(fd int) error     { return retry("fsync", func() error { return unix.Fsync(fd) }) }
func Fdatasync(fd int) error { return retry("fdatasync", func() error { return unix.Fdatasync(fd) }) }

// SyncDir forces the directory that the O_PATH handle dirfd stands for to the disk.
func SyncDir(dirfd int) error {
	fd, err := OpenIn(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer Close(fd)
	return Fsync(fd)
}

// Ioctl passes buf to the ioctl cmd of fd.
func Ioctl(fd int, cmd uint32, buf []byte) error {
	_, err := ioctl("ioctl", fd, cmd, buf)
	return err
}

// IoctlReturn is Ioctl for one that returns a number.
func IoctlReturn(fd int, cmd uint32, buf []byte) (int, error) { return ioctl("ioctl", fd, cmd, buf) }

// ioctl is IoctlReturn, counted as the system call op.
func ioctl(op string, fd int, cmd uint32, buf []byte) (n int, err error) {
	var p unsafe.Pointer
	if len(buf) > 0 {
		p = unsafe.Pointer(&buf[0])
	}
	err = retry(op, func() error {
		r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(cmd), uintptr(p))
		if e != 0 {
			return e
		}
		n = int(r)
		return nil
	})
	return n, err
}

// Flock takes an exclusive lock on the open file fd without waiting;
// EWOULDBLOCK when somebody else has it.
func Flock(fd int) error {
	return retry("flock", func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
}

// Handle returns a persistent name of the inode name in dirfd (file system
// id, type and bytes of its file handle), or nil where the file system has none.
func Handle(dirfd int, name string) ([]byte, error) {
	flags := 0
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	var h unix.FileHandle
	err := retry("name_to_handle_at", func() (err error) { h, _, err = unix.NameToHandleAt(dirfd, name, flags); return err })
	switch err {
	case nil:
	case unix.EOPNOTSUPP, unix.EOVERFLOW, unix.EPERM, unix.ENOSYS:
		return nil, nil
	default:
		return nil, err
	}
	t := h.Type()
	return append([]byte{byte(t), byte(t >> 8), byte(t >> 16), byte(t >> 24)}, h.Bytes()...), nil
}

// FlockWait takes a lock on the open file fd (LOCK_EX or LOCK_SH) and waits for it.
func FlockWait(fd, how int) error {
	return retry("flock", func() error { return unix.Flock(fd, how) })
}

// LockByte locks the byte at off of the open file fd without waiting, for the open
// file description rather than the process (fcntl(2), F_OFD_SETLK); EAGAIN when
// somebody else has it.
func LockByte(fd int, off int64, exclusive bool) error {
	l := unix.Flock_t{Type: unix.F_RDLCK, Whence: unix.SEEK_SET, Start: off, Len: 1}
	if exclusive {
		l.Type = unix.F_WRLCK
	}
	return retry("fcntl", func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l) })
}
