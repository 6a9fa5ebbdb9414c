package sys

import (
	"bytes"
	"encoding/binary"
	"sync"

	"golang.org/x/sys/unix"
)

// Dirent is one entry of a directory.
type Dirent struct {
	Name string
	Ino  uint64
	Type uint8 // DT_*
}

var direntBufs = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// ReadDir returns the entries of the directory open at fd (not an O_PATH
// handle), from its current position to the end, without "." and "..".
func ReadDir(fd int) ([]Dirent, error) {
	bp := direntBufs.Get().(*[]byte)
	defer direntBufs.Put(bp)
	var out []Dirent
	for {
		var n int
		err := retry("getdents64", func() (err error) { n, err = unix.Getdents(fd, *bp); return err })
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return out, nil
		}
		out = parseDirents(out, (*bp)[:n])
	}
}

// parseDirents appends the struct linux_dirent64 records in buf.
func parseDirents(out []Dirent, buf []byte) []Dirent {
	for len(buf) >= 19 {
		ino := binary.NativeEndian.Uint64(buf)
		reclen := int(binary.NativeEndian.Uint16(buf[16:]))
		if reclen < 19 || reclen > len(buf) {
			return out
		}
		name := buf[19:reclen]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		if s := string(name); s != "." && s != ".." {
			out = append(out, Dirent{Name: s, Ino: ino, Type: buf[18]})
		}
		buf = buf[reclen:]
	}
	return out
}

// ReadDirAt returns the entries of the directory that the O_PATH handle
// dirfd stands for.
func ReadDirAt(dirfd int) ([]Dirent, error) {
	return readDirOf(OpenIn(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0))
}

// ReadDirUntouched is ReadDirAt for a directory whose access time is not to change.
func ReadDirUntouched(dirfd int) ([]Dirent, error) {
	return readDirOf(OpenUntouched(dirfd, ".", unix.O_DIRECTORY))
}

func readDirOf(fd int, err error) ([]Dirent, error) {
	if err != nil {
		return nil, err
	}
	defer Close(fd)
	return ReadDir(fd)
}
