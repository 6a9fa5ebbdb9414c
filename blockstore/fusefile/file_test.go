package fusefile

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func noise(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.Read(p)
	return p
}

func TestReadWrite(t *testing.T) {
	p := newPool()
	d := p.add("disk", 8<<20+512)
	m := mountDevices(t, p)
	f := m.open("disk", os.O_RDWR)
	want := make([]byte, 8<<20+512)
	for _, part := range []struct{ off, n int }{{0, 3 << 20}, {5<<20 + 17, 70000}, {8<<20 - 100, 612}, {4 << 20, 1}} {
		data := noise(part.n)
		n, err := f.WriteAt(data, int64(part.off))
		require.NoError(t, err)
		require.Equal(t, part.n, n)
		copy(want[part.off:], data)

		inside := make([]byte, part.n)
		_, err = d.ReadAt(inside, int64(part.off))
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, inside), "what write(2) has returned for is in the device")
	}
	got, err := io.ReadAll(f)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	n, err := f.ReadAt(make([]byte, 1024), 8<<20)
	require.Equal(t, 512, n)
	require.Equal(t, io.EOF, err)
}

func TestPastTheEnd(t *testing.T) {
	p := newPool()
	d := p.add("disk", 1<<20+512)
	m := mountDevices(t, p)
	f := m.open("disk", os.O_RDWR)
	fd := int(f.Fd())
	for _, direct := range []bool{false, true} {
		if direct {
			f = m.open("disk", os.O_RDWR|unix.O_DIRECT)
			fd = int(f.Fd())
		}
		n, err := unix.Pwrite(fd, make([]byte, 4096), 1<<20)
		require.NoError(t, err)
		require.Equal(t, 512, n, "short")
		for _, off := range []int64{1<<20 + 512, 1 << 21, 1 << 40} {
			_, err = unix.Pwrite(fd, make([]byte, 4096), off)
			require.Equal(t, unix.ENOSPC, err)
			n, err = unix.Pread(fd, make([]byte, 4096), off)
			require.NoError(t, err)
			require.Zero(t, n)
		}
	}
	a := m.open("disk", os.O_WRONLY|os.O_APPEND)
	_, err := a.Write([]byte("x"))
	require.ErrorIs(t, err, unix.ENOSPC)
	fi, err := f.Stat()
	require.NoError(t, err)
	require.Equal(t, int64(1<<20+512), fi.Size())
	require.Equal(t, []int64{16}, d.mapped())
}

func TestTruncate(t *testing.T) {
	p := newPool()
	p.add("disk", 1<<20)
	m := mountDevices(t, p)
	data := noise(1 << 20)
	require.NoError(t, os.WriteFile(m.path("disk"), data, 0), "O_CREAT|O_TRUNC")
	f := m.open("disk", os.O_RDWR|os.O_TRUNC)
	require.NoError(t, f.Truncate(0))
	require.NoError(t, f.Truncate(1<<20))
	require.NoError(t, os.Truncate(m.path("disk"), 0))
	require.ErrorIs(t, f.Truncate(1<<20-1), unix.EINVAL)
	require.ErrorIs(t, f.Truncate(1<<20+1), unix.EPERM)
	got, err := io.ReadAll(f)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got), "nothing has happened to the content")
}

func TestFallocate(t *testing.T) {
	const keep, punch, zeroes = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	p := newPool()
	d := p.add("disk", 16*fakeBlock)
	m := mountDevices(t, p)
	f := m.open("disk", os.O_RDWR)
	fd := int(f.Fd())
	want := noise(16 * fakeBlock)
	_, err := f.WriteAt(want, 0)
	require.NoError(t, err)
	check := func(blocks ...int64) {
		t.Helper()
		got := make([]byte, len(want))
		_, err := f.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
		require.Equal(t, blocks, d.mapped())
	}
	_, err = f.ReadAt(make([]byte, len(want)), 0) // into the cache, from where it must go
	require.NoError(t, err)

	require.NoError(t, unix.Fallocate(fd, punch|keep, fakeBlock-100, 3*fakeBlock))
	clear(want[fakeBlock-100 : 4*fakeBlock-100])
	check(0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
	require.NoError(t, unix.Fallocate(fd, zeroes, 2*fakeBlock+1, 3*fakeBlock))
	clear(want[2*fakeBlock+1 : 5*fakeBlock+1])
	check(0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
	require.NoError(t, unix.Fallocate(fd, zeroes|keep, 6*fakeBlock, fakeBlock))
	clear(want[6*fakeBlock : 7*fakeBlock])
	check(0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)

	require.NoError(t, unix.Fallocate(fd, punch|keep, 15*fakeBlock, 9*fakeBlock), "cut off")
	clear(want[15*fakeBlock:])
	check(0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
	require.NoError(t, unix.Fallocate(fd, zeroes|keep, 99*fakeBlock, fakeBlock), "nothing is left of it")
	require.Equal(t, unix.ENOSPC, unix.Fallocate(fd, zeroes, 15*fakeBlock, fakeBlock+1))
	require.Equal(t, unix.EOPNOTSUPP, unix.Fallocate(fd, 0, 0, fakeBlock))
	require.Equal(t, unix.EOPNOTSUPP, unix.Fallocate(fd, keep, 0, fakeBlock))
	require.Equal(t, unix.EOPNOTSUPP, unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, fakeBlock))
	check(0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
}

func TestSeek(t *testing.T) {
	const size = 200 << 20 // several spans
	p := newPool()
	p.add("disk", size)
	p.add("empty", size)
	m := mountDevices(t, p)
	f := m.open("disk", os.O_RDWR)
	for _, off := range []int64{2 * fakeBlock, 3 * fakeBlock, 150 << 20, size - 1} {
		_, err := f.WriteAt([]byte("x"), off)
		require.NoError(t, err)
	}
	for _, c := range []struct {
		off    int64
		whence int
		want   int64
	}{
		{0, unix.SEEK_HOLE, 0}, {0, unix.SEEK_DATA, 2 * fakeBlock},
		{2*fakeBlock + 5, unix.SEEK_DATA, 2*fakeBlock + 5}, {2*fakeBlock + 5, unix.SEEK_HOLE, 4 * fakeBlock},
		{4 * fakeBlock, unix.SEEK_DATA, 150 << 20}, {150<<20 + fakeBlock, unix.SEEK_DATA, size - fakeBlock},
		{size - 1, unix.SEEK_DATA, size - 1}, {size - 1, unix.SEEK_HOLE, size},
	} {
		got, err := f.Seek(c.off, c.whence)
		require.NoError(t, err)
		require.Equal(t, c.want, got, "%v", c)
	}
	for _, off := range []int64{size, size + 1} {
		for _, whence := range []int{unix.SEEK_DATA, unix.SEEK_HOLE} {
			_, err := f.Seek(off, whence)
			require.ErrorIs(t, err, unix.ENXIO)
		}
	}
	e := m.open("empty", os.O_RDONLY)
	_, err := e.Seek(0, unix.SEEK_DATA)
	require.ErrorIs(t, err, unix.ENXIO)
	end, err := e.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	require.Equal(t, int64(size), end)
}

// Direct and cached access see the same.
func TestDirectIO(t *testing.T) {
	p := newPool()
	p.add("disk", 4<<20)
	m := mountDevices(t, p)
	direct := m.open("disk", os.O_RDWR|unix.O_DIRECT)
	cached := m.open("disk", os.O_RDWR)
	buf, err := unix.Mmap(-1, 0, 2<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	require.NoError(t, err)
	defer unix.Munmap(buf)
	for range 3 {
		data := noise(2 << 20)
		copy(buf, data)
		_, err = direct.WriteAt(buf, 1<<20)
		require.NoError(t, err)
		got := make([]byte, len(data))
		_, err = cached.ReadAt(got, 1<<20)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got))

		data = noise(1 << 20)
		_, err = cached.WriteAt(data, 2<<20-3)
		require.NoError(t, err)
		_, err = direct.ReadAt(buf, 1<<20)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, buf[1<<20-3:2<<20-3]))
	}
}

func TestMmap(t *testing.T) {
	p := newPool()
	d := p.add("disk", 4<<20+1000)
	m := mountDevices(t, p)
	f := m.open("disk", os.O_RDWR)
	// Populated, because a page fault that waits for a handler of this same
	// process would stop it for good at the next garbage collection.
	mem, err := unix.Mmap(int(f.Fd()), 0, 4<<20+1000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	require.NoError(t, err)
	data := noise(100000)
	copy(mem[3<<20:], data)
	copy(mem[4<<20:], data[:1000])
	require.NoError(t, unix.Msync(mem, unix.MS_SYNC))
	got := make([]byte, len(data))
	_, err = d.ReadAt(got, 3<<20)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))

	_, err = f.WriteAt([]byte("written"), 77)
	require.NoError(t, err)
	require.Equal(t, "written", string(mem[77:84]))

	// What a mapping leaves dirty is written before the device is closed.
	copy(mem[5:], "late")
	require.NoError(t, f.Close())
	require.True(t, d.isOpen())
	require.NoError(t, unix.Munmap(mem))
	eventually(t, func() bool { return !d.isOpen() })
	require.Equal(t, "late", string(d.blocks[0][5:9]))
	require.Equal(t, data[:1000], d.blocks[64][:1000])
}

// Requests are as large as they can be. Reads run at the same time; writes to
// one file do not, because the kernel holds the inode's lock.
func TestLargeParallelRequests(t *testing.T) {
	p := newPool()
	d := p.add("disk", 64<<20)
	m := mountDevices(t, p)
	var running, most, writes atomic.Int64
	d.on(func(op string) error {
		switch op {
		case "write":
			writes.Add(1)
		case "read":
			now := running.Add(1)
			for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
			}
			time.Sleep(2 * time.Millisecond)
			running.Add(-1)
		}
		return nil
	})
	want := noise(64 << 20)
	f := m.open("disk", os.O_RDWR)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			_, err := f.WriteAt(want[i<<22:(i+1)<<22], int64(i)<<22)
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, writes.Load(), int64(64+16))
	require.NoError(t, f.Close())
	eventually(t, func() bool { return !d.isOpen() }) // the next open begins without pages
	got := make([]byte, len(want))
	g := m.open("disk", os.O_RDONLY)
	for i := range 16 {
		wg.Go(func() {
			if _, err := g.ReadAt(got[i<<22:(i+1)<<22], int64(i)<<22); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.True(t, bytes.Equal(want, got))
	require.Greater(t, most.Load(), int64(4))
}

func TestErrors(t *testing.T) {
	p := newPool()
	d := p.add("disk", 1<<20)
	m := mountDevices(t, p)
	f := m.open("disk", os.O_RDWR)
	fail := func(op string, err error) {
		d.on(func(o string) error {
			if o == op {
				return err
			}
			return nil
		})
	}
	buf := make([]byte, 4096)

	fail("write", errors.Join(errors.New("the pool is full"), syscall.ENOSPC))
	_, err := f.WriteAt(buf, 0)
	require.ErrorIs(t, err, unix.ENOSPC)
	fail("write", errors.New("something"))
	_, err = f.WriteAt(buf, 0)
	require.ErrorIs(t, err, unix.EIO)
	fail("read", syscall.EUCLEAN)
	_, err = f.ReadAt(buf, 512<<10)
	require.ErrorIs(t, err, unix.EUCLEAN)
	g := m.open("disk", os.O_RDWR|unix.O_DIRECT)
	_, err = g.ReadAt(buf, 512<<10)
	require.ErrorIs(t, err, unix.EUCLEAN)
	fail("read", io.EOF) // half of it
	_, err = g.ReadAt(buf, 512<<10)
	require.ErrorIs(t, err, unix.EIO)
	fi, err := f.Stat()
	require.NoError(t, err)
	require.Equal(t, int64(1<<20), fi.Size(), "a short read does not shorten the file")
	fail("zero", syscall.EROFS)
	require.Equal(t, unix.EROFS, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, 0, 4096))
	fail("extents", syscall.EBADMSG)
	_, err = f.Seek(0, unix.SEEK_DATA)
	require.ErrorIs(t, err, unix.EBADMSG)
	fail("lookup", syscall.EUCLEAN)
	_, err = os.Stat(m.path("disk"))
	require.NoError(t, err, "an open file goes on without the pool's opinion")
	fail("", nil)
}

func TestPanics(t *testing.T) {
	p := newPool()
	d := p.add("disk", 1<<20)
	m := mountDevices(t, p)
	f := m.open("disk", os.O_RDWR|unix.O_DIRECT)
	for _, c := range []struct {
		op string
		do func() error
	}{
		{"read", func() error { _, err := f.ReadAt(make([]byte, 4096), 0); return err }},
		{"write", func() error { _, err := f.WriteAt(make([]byte, 4096), 0); return err }},
		{"flush", f.Sync},
		{"extents", func() error { _, err := f.Seek(0, unix.SEEK_DATA); return err }},
		{"zero", func() error { return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, 0, 1) }},
	} {
		d.on(func(o string) error {
			if o == c.op {
				panic("a bug in " + o)
			}
			return nil
		})
		require.ErrorIs(t, c.do(), unix.EIO)
		require.Contains(t, m.log.String(), "a bug in "+c.op)
	}
	d.on(func(string) error { return nil })
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	eventually(t, func() bool { return !d.isOpen() })
}

// fsync always flushes, close and the last release only what was written.
func TestFlush(t *testing.T) {
	p := newPool()
	d := p.add("disk", 1<<20)
	m := mountDevices(t, p)
	flushes := func(want int64) { t.Helper(); require.Equal(t, want, d.flushes.Load()) }
	r := m.open("disk", os.O_RDONLY)
	require.NoError(t, m.open("disk", os.O_RDWR).Close())
	flushes(0)
	f := m.open("disk", os.O_RDWR)
	require.NoError(t, f.Sync())
	flushes(1)
	require.NoError(t, unix.Fdatasync(int(f.Fd())))
	flushes(2)
	_, err := f.WriteAt([]byte("x"), 0)
	require.NoError(t, err)
	flushes(2)
	require.NoError(t, f.Close())
	flushes(3)
	require.NoError(t, r.Close())
	eventually(t, func() bool { return !d.isOpen() })
	flushes(3)

	d.on(func(op string) error {
		if op == "flush" {
			return syscall.ENOSPC
		}
		return nil
	})
	f = m.open("disk", os.O_RDWR)
	_, err = f.WriteAt([]byte("x"), 0)
	require.NoError(t, err)
	require.ErrorIs(t, f.Sync(), unix.ENOSPC)
	require.ErrorIs(t, f.Close(), unix.ENOSPC)
	eventually(t, func() bool { return strings.Contains(m.log.String(), "closing device disk: no space left on device") })
	require.Equal(t, []int64{1, 2}, []int64{d.opens.Load() - 1, d.closes.Load()})
}

// A write that waits for space ends when its caller is killed; what waits
// keeps nobody else from being served.
func TestInterrupt(t *testing.T) {
	needTools(t, "dd", "fallocate")
	p := &patientPool{newPool(), make(chan struct{})}
	p.add("disk", 1<<20)
	m := mountDevices(t, p)
	for _, args := range [][]string{
		{"dd", "if=/dev/zero", "of=" + m.path("disk"), "bs=4k", "count=1", "conv=notrunc"},
		{"fallocate", "-z", "-o", "0", "-l", "4096", m.path("disk")},
	} {
		proc, err := os.StartProcess(mustLook(t, args[0]), args, &os.ProcAttr{})
		require.NoError(t, err)
		<-p.waiting
		_, err = os.ReadFile(m.path("disk"))
		require.NoError(t, err)
		require.NoError(t, proc.Kill())
		start := time.Now()
		_, err = proc.Wait()
		require.NoError(t, err)
		require.Less(t, time.Since(start), 2*time.Second)
	}
}
