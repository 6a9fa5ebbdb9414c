package tests

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// watched is one lower file with three names, looked at through everything
// that has ever been opened on it.
type watched struct {
	t     *testing.T
	e     *harness.Env
	m     *harness.Mount
	model []byte
	names []string
	fds   []int  // opened before and after the copy-up, read-only and writable
	rw    []bool // which of them may write
	maps  [][]byte
	mtime int64
}

const (
	page     = 4096
	fileSize = 5*page + 123
	maxSize  = 16 * page
)

func newWatched(t *testing.T) *watched {
	t.Helper()
	e := harness.New(t).Tree("l", "f=x\ng=>f\nd/h=>f\nother=o")
	w := &watched{t: t, e: e, names: []string{"f", "g", "d/h"}}
	w.model = make([]byte, fileSize)
	rand.New(rand.NewSource(7)).Read(w.model)
	require.NoError(t, os.WriteFile(e.P("l", "f"), w.model, 0644))
	require.NoError(t, harness.SetTime(e.P("l", "f"), time.Unix(1_000_000_000, 42)))
	w.m = e.Mount(e.RW())
	t.Cleanup(w.close) // before the unmount
	for _, n := range w.names {
		w.open(n, unix.O_RDONLY)
	}
	w.check("before any change") // everything is cached now
	return w
}

func (w *watched) open(name string, flags int) int {
	w.t.Helper()
	fd, err := unix.Open(w.m.P(name), flags|unix.O_CLOEXEC, 0)
	require.NoError(w.t, err)
	w.fds, w.rw = append(w.fds, fd), append(w.rw, flags != unix.O_RDONLY)
	prot := unix.PROT_READ
	if flags != unix.O_RDONLY {
		prot |= unix.PROT_WRITE
	}
	if flags&unix.O_DIRECT == 0 {
		// Longer than the file: what lies beyond its end is not touched.
		m, err := unix.Mmap(fd, 0, maxSize, prot, unix.MAP_SHARED)
		require.NoError(w.t, err)
		w.maps = append(w.maps, m)
	}
	return fd
}

func (w *watched) close() {
	for _, m := range w.maps {
		unix.Munmap(m)
	}
	for _, fd := range w.fds {
		unix.Close(fd)
	}
	w.maps, w.fds, w.rw = nil, nil, nil
}

// check looks through every handle, mapping and name.
func (w *watched) check(after string) {
	w.t.Helper()
	var first unix.Stat_t
	same := func(who string, st *unix.Stat_t) {
		w.t.Helper()
		require.EqualValues(w.t, len(w.model), st.Size, "size through %s after %s", who, after)
		if first.Ino == 0 {
			first = *st
		}
		require.Equal(w.t, first.Ino, st.Ino, "inode number through %s after %s", who, after)
		require.EqualValues(w.t, len(w.names), st.Nlink, "links through %s after %s", who, after)
		require.Equal(w.t, first.Mtim, st.Mtim, "mtime through %s after %s", who, after)
	}
	for i, fd := range w.fds {
		var st unix.Stat_t
		require.NoError(w.t, unix.Fstat(fd, &st))
		same(fmt.Sprintf("handle %d", i), &st)
		buf := aligned(maxSize)
		n, err := unix.Pread(fd, buf, 0)
		require.NoError(w.t, err)
		w.equal(buf[:n], fmt.Sprintf("handle %d after %s", i, after))
	}
	for _, name := range w.names {
		same(name, harness.Stat(w.t, w.m.P(name)))
		w.equal([]byte(read(w.t, w.m.P(name))), name+" after "+after)
	}
	for i, m := range w.maps {
		w.equal(m[:len(w.model)], fmt.Sprintf("mapping %d after %s", i, after))
	}
	require.GreaterOrEqual(w.t, first.Mtim.Nano(), w.mtime, "mtime goes back after %s", after)
	w.mtime = first.Mtim.Nano()
}

func (w *watched) equal(got []byte, what string) {
	w.t.Helper()
	if bytes.Equal(w.model, got) {
		return
	}
	for i := range w.model {
		if i >= len(got) || w.model[i] != got[i] {
			w.t.Fatalf("%s: %d bytes instead of %d, stale from %d on", what, len(got), len(w.model), i)
		}
	}
	w.t.Fatalf("%s: %d bytes instead of %d", what, len(got), len(w.model))
}

// checkUpper compares with what lies in the upper, once synced.
func (w *watched) checkUpper() {
	w.t.Helper()
	for i, fd := range w.fds {
		if w.rw[i] {
			require.NoError(w.t, unix.Fsync(fd))
		}
	}
	for _, name := range w.names {
		if p := w.e.P("u", name); exists(p) {
			data, err := os.ReadFile(p)
			require.NoError(w.t, err)
			w.equal(data, "the upper's "+name)
		}
	}
	data, err := os.ReadFile(w.e.P("l", "f"))
	require.NoError(w.t, err)
	require.Len(w.t, data, fileSize, "the lower is untouched")
}

func aligned(n int) []byte {
	b := make([]byte, n+page)
	off := page - int(uintptr(unsafe.Pointer(&b[0]))%page)
	return b[off : off+n : off+n]
}

func (w *watched) put(data []byte, off int) {
	if end := off + len(data); end > len(w.model) {
		w.model = append(w.model, make([]byte, end-len(w.model))...)
	}
	copy(w.model[off:], data)
}

func (w *watched) resize(n int) {
	if n <= len(w.model) {
		w.model = w.model[:n:n]
		return
	}
	w.model = append(w.model, make([]byte, n-len(w.model))...)
}

// writer returns a writable handle; some open, the rest opened long ago.
func (w *watched) writer(rnd *rand.Rand) int {
	var have []int
	for i, fd := range w.fds {
		if w.rw[i] {
			have = append(have, fd)
		}
	}
	if len(have) == 0 || rnd.Intn(4) == 0 && len(w.fds) < 12 {
		return w.open(w.names[rnd.Intn(len(w.names))], unix.O_RDWR)
	}
	return have[rnd.Intn(len(have))]
}

// change does one thing to the file and to the model and says what.
func (w *watched) change(rnd *rand.Rand) string {
	t, name := w.t, w.m.P(w.names[rnd.Intn(len(w.names))])
	off := rnd.Intn(fileSize + page)
	data := make([]byte, 1+rnd.Intn(2*page))
	rnd.Read(data)
	switch kind := rnd.Intn(11); kind {
	case 0, 1:
		_, err := unix.Pwrite(w.writer(rnd), data, int64(off))
		require.NoError(t, err)
		w.put(data, off)
		return fmt.Sprintf("a write of %d at %d", len(data), off)
	case 2:
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
		require.NoError(t, err)
		_, err = f.Write(data)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		w.put(data, len(w.model))
		if len(w.model) > maxSize-3*page { // stay within the mappings
			require.NoError(t, os.Truncate(name, page+5))
			w.resize(page + 5)
		}
		return "an append"
	case 3:
		require.NoError(t, os.Truncate(name, int64(off)))
		w.resize(off)
		return fmt.Sprintf("truncate to %d", off)
	case 4:
		require.NoError(t, unix.Ftruncate(w.writer(rnd), int64(off)))
		w.resize(off)
		return fmt.Sprintf("ftruncate to %d", off)
	case 5:
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
		require.NoError(t, err)
		_, err = f.Write(data)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		w.model = append([]byte{}, data...)
		return "O_TRUNC and a write"
	case 6:
		other := w.m.P("other")
		require.NoError(t, os.WriteFile(other, data, 0644))
		src, err := os.Open(other)
		require.NoError(t, err)
		defer src.Close()
		in, out := int64(0), int64(off)
		n, err := unix.CopyFileRange(int(src.Fd()), &in, w.writer(rnd), &out, len(data), 0)
		require.NoError(t, err)
		w.put(data[:n], off)
		return fmt.Sprintf("copy_file_range of %d to %d", n, off)
	case 7:
		dst, err := os.Create(w.m.P("copy"))
		require.NoError(t, err)
		defer dst.Close()
		in, out := int64(0), int64(0)
		total := 0
		for total < len(w.model) {
			n, err := unix.CopyFileRange(w.fds[0], &in, int(dst.Fd()), &out, len(w.model)-total, 0)
			require.NoError(t, err)
			if n == 0 {
				break
			}
			total += n
		}
		w.equal([]byte(read(t, w.m.P("copy"))), "a copy_file_range out of it")
		return "copy_file_range out of it"
	case 8:
		fd := w.writer(rnd)
		require.NoError(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), page))
		for i := off; i < off+page && i < len(w.model); i++ {
			w.model[i] = 0
		}
		return fmt.Sprintf("punching a hole at %d", off)
	case 9:
		if len(w.model) == 0 {
			return "nothing"
		}
		m := w.maps[len(w.maps)-1]
		fd := w.open(w.names[rnd.Intn(3)], unix.O_RDWR)
		m = w.maps[len(w.maps)-1]
		at := off % len(w.model)
		n := copy(m[at:len(w.model)], data)
		require.NoError(t, unix.Msync(m, unix.MS_SYNC))
		copy(w.model[at:], data[:n])
		if len(w.fds) > 12 { // away with it, the mapping stays
			last := len(w.fds) - 1
			unix.Close(fd)
			w.fds, w.rw = w.fds[:last], w.rw[:last]
		}
		if len(w.maps) > 24 {
			unix.Munmap(w.maps[3])
			w.maps = append(w.maps[:3], w.maps[4:]...)
		}
		return fmt.Sprintf("a mapped write of %d at %d", n, at)
	default:
		fd, err := unix.Open(name, unix.O_RDWR|unix.O_DIRECT, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		buf := aligned(page)
		rnd.Read(buf)
		at := off / page * page
		_, err = unix.Pwrite(fd, buf, int64(at))
		require.NoError(t, err)
		w.put(buf, at)
		return fmt.Sprintf("an O_DIRECT write at %d", at)
	}
}

// Random changes through handles opened before and after the copy-up, through
// every name of the file, and after each of them a look through all.
func TestCoherenceRandom(t *testing.T) {
	for seed := 0; seed < seeds(t, 12, 4); seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			w := newWatched(t)
			rnd := rand.New(rand.NewSource(int64(seed)))
			if seed%2 == 0 { // writable handles from before the copy-up
				w.open("g", unix.O_RDWR)
				w.open("f", unix.O_RDWR)
				w.check("opening it for writing")
			}
			var history []string
			for i := 0; i < 60; i++ {
				what := w.change(rnd)
				history = append(history, what)
				w.check(fmt.Sprintf("step %d, %s", i, strings.Join(history[max(0, len(history)-3):], ", ")))
				if i%10 == 9 {
					w.checkUpper()
				}
			}
			w.close()
			m := w.m.Remount(w.e.RW())
			for _, name := range w.names {
				w.equal([]byte(read(t, m.P(name))), name+" after a remount")
				require.EqualValues(t, 3, harness.Stat(t, m.P(name)).Nlink)
			}
		})
	}
}

// Names that come and go change the link count for those who look through
// another name or an open handle.
func TestCoherenceOfLinkCounts(t *testing.T) {
	w := newWatched(t)
	count := func(want int) {
		t.Helper()
		for _, fd := range w.fds {
			var st unix.Stat_t
			require.NoError(t, unix.Fstat(fd, &st))
			require.EqualValues(t, want, st.Nlink)
		}
		for _, n := range w.names {
			require.EqualValues(t, want, harness.Stat(t, w.m.P(n)).Nlink, n)
		}
	}
	require.NoError(t, os.Link(w.m.P("g"), w.m.P("i")))
	w.names = append(w.names, "i")
	count(4)
	require.NoError(t, os.Remove(w.m.P("f")))
	w.names = w.names[1:]
	count(3)
	require.NoError(t, os.Rename(w.m.P("other"), w.m.P("g")))
	w.names = w.names[1:]
	count(2)
	require.NoError(t, os.Rename(w.m.P("i"), w.m.P("d", "j")))
	w.names = []string{"d/h", "d/j"}
	count(2)
	for _, n := range w.names {
		require.NoError(t, os.Remove(w.m.P(n)))
	}
	w.names = nil
	count(0)
	for _, fd := range w.fds {
		buf := make([]byte, maxSize)
		n, err := unix.Pread(fd, buf, 0)
		require.NoError(t, err)
		w.equal(buf[:n], "an unlinked file")
	}
}

// A directory's mtime and listing are never stale either.
func TestCoherenceOfDirectories(t *testing.T) {
	e := harness.New(t).Tree("l", "d/a=1 \nd/ ^1000000000")
	m := e.Mount(e.RW())
	f, err := os.Open(m.P("d"))
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, []string{"a=1"}, harness.Names(t, m.P("d")))
	old := harness.Stat(t, m.P("d")).Mtim
	require.EqualValues(t, 1000000000, old.Sec)
	// A copy-up of a child is no change of the directory.
	write(t, m.P("d/a"), "2")
	require.Equal(t, old, harness.Stat(t, m.P("d")).Mtim, "a copy-up keeps its parent's mtime")
	require.Equal(t, old, harness.Stat(t, e.P("u/d")).Mtim, "also in the upper")
	write(t, m.P("d/b"), "3")
	require.NotEqual(t, old, harness.Stat(t, m.P("d")).Mtim)
	names, err := f.Readdirnames(-1)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"a", "b"}, names, "through a handle opened before")
	require.NoError(t, os.Remove(m.P("d/a")))
	require.Equal(t, []string{"b=3"}, harness.Names(t, m.P("d")))
}
