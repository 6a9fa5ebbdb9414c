package data

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// step does one operation.
func (x *exerciser) step() error {
	type op struct {
		weight int
		do     func() error
	}
	for roll, list := x.rnd.Intn(100), []op{
		{8, x.read}, {8, x.pread}, {8, x.write}, {8, x.pwrite}, {5, x.appendTo}, {8, x.truncate},
		{10, x.mapRead}, {10, x.mapWrite}, {7, x.directRead}, {7, x.directWrite}, {7, x.allocate},
		{6, x.copyRange}, {1, x.holes}, {2, x.sync}, {2, x.drop}, {2, x.reopen}, {1, x.remap},
	}; ; list = list[1:] {
		if roll -= list[0].weight; roll < 0 {
			return list[0].do()
		}
	}
}

// pick returns a handle that fits; there always is one.
func (x *exerciser) pick(fits func(handle) bool) (int, handle) {
	for start := x.rnd.Intn(len(x.handles)); ; start++ {
		i := start % len(x.handles)
		if fits(x.handles[i]) {
			return i, x.handles[i]
		}
	}
}

func buffered(h handle) bool { return !h.is(unix.O_DIRECT) }

func (x *exerciser) reader() (int, handle) {
	return x.pick(func(h handle) bool { return h.reads() && buffered(h) })
}

func (x *exerciser) writer() (int, handle) {
	return x.pick(func(h handle) bool { return h.writes() && buffered(h) && !h.is(unix.O_APPEND) })
}

// span picks a range that begins within the file, or not far behind its end.
func (x *exerciser) span() (off, n int) {
	off = x.rnd.Intn(min(len(x.model)+page, maxFile-1))
	if x.rnd.Intn(4) == 0 { // where pages begin and end is where mistakes are
		off = min((off+page/2)/page*page+x.rnd.Intn(3)-1, maxFile-1)
		off = max(off, 0)
	}
	n = 1 + x.rnd.Intn(min(maxOp, maxFile-off))
	return off, n
}

// grow makes the model at least n bytes long.
func (x *exerciser) grow(n int) {
	if n > len(x.model) {
		x.model = append(x.model, make([]byte, n-len(x.model))...)
	}
}

// settle is called before a write at off. If it will lengthen the file, dirty
// pages of mappings have to go to the daemon first: Linux (6.18) loses bytes
// of a write() behind the end on any FUSE file system without a writeback
// cache, bindfs for one, when it begins to write back the page with the end
// at that moment: it takes what is new in the page for rubbish behind the end.
func (x *exerciser) settle(off, n int) error {
	if !x.dirty || off+n <= len(x.model) {
		return nil
	}
	x.dirty = false
	_, h := x.writer()
	return unix.Fsync(h.fd)
}

// put fills the buffer with new bytes and the model with them at off.
func (x *exerciser) put(off, n int) []byte {
	b := x.buf[:n]
	x.rnd.Read(b)
	x.grow(off + n)
	copy(x.model[off:], b)
	return b
}

// got checks what a read of n bytes at off has put into the buffer.
func (x *exerciser) got(off, n, done int, err error) error {
	if err != nil {
		return err
	}
	if want := max(0, min(n, len(x.model)-off)); done != want {
		return fmt.Errorf("read %d bytes, want %d", done, want)
	}
	if done == 0 {
		return nil
	}
	return x.compare(x.buf[:done], off)
}

// all returns the error of a write that must be whole.
func all(n, done int, err error) error {
	if err == nil && done != n {
		return fmt.Errorf("wrote %d bytes of %d", done, n)
	}
	return err
}

func (x *exerciser) read() error {
	i, h := x.reader()
	off, n := x.span()
	x.say("read %#x +%#x by handle %d", off, n, i)
	if _, err := unix.Seek(h.fd, int64(off), unix.SEEK_SET); err != nil {
		return err
	}
	done, err := unix.Read(h.fd, x.buf[:n])
	return x.got(off, n, done, err)
}

func (x *exerciser) pread() error {
	i, h := x.reader()
	off, n := x.span()
	x.say("pread %#x +%#x by handle %d", off, n, i)
	done, err := unix.Pread(h.fd, x.buf[:n], int64(off))
	return x.got(off, n, done, err)
}

func (x *exerciser) write() error {
	i, h := x.writer()
	off, n := x.span()
	x.say("write %#x +%#x by handle %d", off, n, i)
	if err := x.settle(off, n); err != nil {
		return err
	}
	if _, err := unix.Seek(h.fd, int64(off), unix.SEEK_SET); err != nil {
		return err
	}
	done, err := unix.Write(h.fd, x.put(off, n))
	return all(n, done, err)
}

func (x *exerciser) pwrite() error {
	i, h := x.writer()
	off, n := x.span()
	x.say("pwrite %#x +%#x by handle %d", off, n, i)
	if err := x.settle(off, n); err != nil {
		return err
	}
	done, err := unix.Pwrite(h.fd, x.put(off, n), int64(off))
	return all(n, done, err)
}

func (x *exerciser) appendTo() error {
	i, h := x.pick(func(h handle) bool { return h.is(unix.O_APPEND) })
	n := 1 + x.rnd.Intn(page)
	off := len(x.model)
	if off+n > maxFile {
		return x.truncate()
	}
	x.say("append +%#x at %#x by handle %d", n, off, i)
	if err := x.settle(off, n); err != nil {
		return err
	}
	done, err := unix.Write(h.fd, x.put(off, n))
	return all(n, done, err)
}

func (x *exerciser) truncate() error {
	size := x.rnd.Intn(maxFile)
	if x.rnd.Intn(8) == 0 {
		size = 0
	}
	x.say("truncate %#x to %#x", len(x.model), size)
	x.model = x.model[:min(size, len(x.model))]
	x.grow(size)
	if x.rnd.Intn(2) == 0 {
		return unix.Truncate(x.path, int64(size))
	}
	_, h := x.pick(handle.writes)
	return unix.Ftruncate(h.fd, int64(size))
}

// inFile is span cut to what there is: a mapping has no more.
func (x *exerciser) inFile() (off, n int, ok bool) {
	off, n = x.span()
	return off, min(n, len(x.model)-off), off < len(x.model)
}

func (x *exerciser) mapRead() error {
	off, n, ok := x.inFile()
	if !ok {
		return nil
	}
	i := x.rnd.Intn(len(x.maps))
	x.say("read %#x +%#x in mapping %d", off, n, i)
	mem := x.maps[i].mem
	if err := x.compare(mem[off:off+n], off); err != nil {
		return err
	}
	// Behind the end of the file its last page is zero.
	for at := len(x.model); at%page != 0; at++ {
		if mem[at] != 0 {
			return fmt.Errorf("mapping %d has %#x at %#x, behind the end at %#x", i, mem[at], at, len(x.model))
		}
	}
	return nil
}

func (x *exerciser) mapWrite() error {
	off, n, ok := x.inFile()
	if !ok {
		return nil
	}
	i := len(x.maps) - 1 // the last one is writable
	then := x.rnd.Intn(3)
	x.say("write %#x +%#x in mapping %d, then %s", off, n, i, []string{"msync", "begin to write back", "nothing"}[then])
	copy(x.maps[i].mem[off:], x.put(off, n))
	switch then {
	case 0:
		from := off / page * page
		return unix.Msync(x.maps[i].mem[from:off+n], unix.MS_SYNC)
	case 1:
		// What comes next meets writes that are under way.
		_, h := x.writer()
		return unix.SyncFileRange(h.fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	x.dirty = true
	return nil
}

// aligned is span in whole pages.
func (x *exerciser) aligned() (off, n int) {
	off, n = x.span()
	off, n = off/page*page, (n+page-1)/page*page
	return off, min(n, maxFile-off)
}

func (x *exerciser) directRead() error {
	i, h := x.pick(func(h handle) bool { return h.is(unix.O_DIRECT) && h.reads() })
	off, n := x.aligned()
	x.say("direct read %#x +%#x by handle %d", off, n, i)
	done, err := unix.Pread(h.fd, x.buf[:n], int64(off))
	return x.got(off, n, done, err)
}

func (x *exerciser) directWrite() error {
	i, h := x.pick(func(h handle) bool { return h.is(unix.O_DIRECT) && h.writes() })
	off, n := x.aligned()
	x.say("direct write %#x +%#x by handle %d", off, n, i)
	done, err := unix.Pwrite(h.fd, x.put(off, n), int64(off))
	return all(n, done, err)
}

func (x *exerciser) allocate() error {
	if len(x.modes) == 0 {
		return nil
	}
	mode := x.modes[x.rnd.Intn(len(x.modes))]
	i, h := x.pick(handle.writes)
	off, n := x.span()
	x.say("fallocate mode %#x %#x +%#x by handle %d", mode, off, n, i)
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		x.grow(off + n)
	}
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 && off < len(x.model) {
		clear(x.model[off:min(off+n, len(x.model))])
	}
	return unix.Fallocate(h.fd, mode, int64(off), int64(n))
}

func (x *exerciser) copyRange() error {
	from, n, ok := x.inFile()
	to, _ := x.span()
	n = min(n, maxFile-to)
	if !ok || from < to+n && to < from+n {
		return nil // the two may not overlap
	}
	i, r := x.reader()
	j, w := x.writer()
	x.say("copy_file_range %#x +%#x to %#x by handles %d and %d", from, n, to, i, j)
	in, out := int64(from), int64(to)
	done, err := unix.CopyFileRange(r.fd, &in, w.fd, &out, n, 0)
	if err != nil || done <= 0 || done > n {
		return fmt.Errorf("copied %d bytes of %d: %v", done, n, err)
	}
	x.grow(to + done)
	copy(x.model[to:to+done], x.model[from:])
	return nil
}

// holes checks that what is reported as a hole is zero. The kernel asks the
// daemon without a look at dirty pages of mappings, so those go first.
func (x *exerciser) holes() error {
	i, h := x.reader()
	x.say("seek for data and holes by handle %d", i)
	_, w := x.writer()
	if err := unix.Fsync(w.fd); err != nil {
		return err
	}
	for at := int64(0); at < int64(len(x.model)); {
		data, err := unix.Seek(h.fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			data, err = int64(len(x.model)), nil
		}
		if err != nil {
			return fmt.Errorf("SEEK_DATA from %#x: %w", at, err)
		}
		if data < at || data > int64(len(x.model)) {
			return fmt.Errorf("SEEK_DATA from %#x found %#x in a file of %#x bytes", at, data, len(x.model))
		}
		for ; at < data; at++ {
			if x.model[at] != 0 {
				return fmt.Errorf("at %#x is said to be a hole, but there are data", at)
			}
		}
		if data == int64(len(x.model)) {
			break
		}
		if at, err = unix.Seek(h.fd, data, unix.SEEK_HOLE); err != nil || at <= data {
			return fmt.Errorf("SEEK_HOLE from %#x found %#x: %v", data, at, err)
		}
	}
	return nil
}

func (x *exerciser) sync() error {
	i, h := x.pick(func(handle) bool { return true })
	x.say("fsync by handle %d", i)
	if x.rnd.Intn(2) == 0 {
		return unix.Fdatasync(h.fd)
	}
	return unix.Fsync(h.fd)
}

// drop has the kernel forget pages, so that they are read from the daemon
// again: it keeps them over open and close, and those in use by a mapping
// even now.
func (x *exerciser) drop() error {
	x.say("fsync, drop the pages")
	_, h := x.writer()
	for _, m := range x.maps {
		if err := unix.Madvise(m.mem, unix.MADV_DONTNEED); err != nil {
			return err
		}
	}
	if err := unix.Fsync(h.fd); err != nil {
		return err
	}
	return unix.Fadvise(h.fd, 0, 0, unix.FADV_DONTNEED)
}

// reopen replaces a handle by one of the same kind, which may empty the file.
func (x *exerciser) reopen() error {
	i := kept + x.rnd.Intn(len(x.handles)-kept)
	flags := x.handles[i].flags
	if flags&unix.O_ACCMODE != unix.O_RDONLY && x.rnd.Intn(10) == 0 {
		flags |= unix.O_TRUNC
		x.model = nil
	}
	x.say("reopen handle %d with %#x", i, flags)
	if err := unix.Close(x.handles[i].fd); err != nil {
		return err
	}
	x.handles = append(x.handles[:i], x.handles[i+1:]...)
	return x.addHandle(flags)
}

// remap replaces the writable mapping.
func (x *exerciser) remap() error {
	i := len(x.maps) - 1
	x.say("remap mapping %d", i)
	if err := unix.Munmap(x.maps[i].mem); err != nil {
		return err
	}
	x.maps = x.maps[:i]
	return x.addMap(true)
}
