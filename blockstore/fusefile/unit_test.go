package fusefile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// What does not need a mount.

func TestStatus(t *testing.T) {
	for want, list := range map[syscall.Errno][]error{
		0:                  {nil},
		syscall.EIO:        {errors.New("x"), errs.New(errs.Corrupt, "x")},
		syscall.ENOSPC:     {errs.New(errs.NoSpace, "x"), fmt.Errorf("x: %w", syscall.ENOSPC)},
		syscall.EDQUOT:     {errs.New(errs.NoSpace, "x: %w", syscall.EDQUOT)},
		syscall.EBUSY:      {errs.New(errs.Busy, "x")},
		syscall.ENOENT:     {errs.New(errs.NotFound, "x"), errs.New(errs.NotFound, "x: %w", syscall.ENODATA)},
		syscall.EINTR:      {fmt.Errorf("x: %w", context.Canceled)},
		syscall.EOPNOTSUPP: {errs.New(errs.Corrupt, "x: %w", syscall.EOPNOTSUPP)},
	} {
		for _, err := range list {
			require.Equal(t, fuse.Status(want), status(err), "%v", err)
		}
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		size        int64
		off, length uint64
		want        int64
	}{
		{100, 0, 100, 100}, {100, 0, 101, 100}, {100, 99, 5, 1}, {100, 100, 5, 0},
		{100, 1 << 63, 5, 0}, {100, ^uint64(0), 5, 0}, {100, 50, ^uint64(0), 50}, {0, 0, 1, 0},
	} {
		require.Equal(t, c.want, within(c.size, c.off, c.length), "%v", c)
	}
}

// The kernel prefers READDIRPLUS, but need not use it.
func TestReadDir(t *testing.T) {
	p := newPool()
	for _, name := range []string{"c", "a", "b"} {
		p.add(name, 512)
	}
	f := New(p, Options{})
	var open fuse.OpenOut
	require.True(t, f.OpenDir(nil, &fuse.OpenIn{}, &open).Ok())
	var offsets []uint64
	in := fuse.ReadIn{Fh: open.Fh}
	for {
		out := fuse.NewDirEntryList(make([]byte, 70), in.Offset) // two entries
		require.True(t, f.ReadDir(nil, &in, out).Ok())
		if out.Offset == in.Offset {
			break
		}
		in.Offset = out.Offset
		offsets = append(offsets, out.Offset)
	}
	require.Equal(t, []uint64{2, 4, 5}, offsets)
	require.Empty(t, f.nodes, "nothing was looked up")

	broken := error(unix.EUCLEAN)
	p.broken.Store(&broken)
	in.Offset = 0
	require.Equal(t, fuse.Status(unix.EUCLEAN), f.ReadDir(nil, &in, fuse.NewDirEntryList(nil, 0)))
	f.ReleaseDir(&fuse.ReleaseIn{Fh: open.Fh})
	require.Equal(t, fuse.EBADF, f.ReadDir(nil, &in, fuse.NewDirEntryList(nil, 0)))
}

// Requests for what the kernel has forgotten, or what is not open, are answered.
func TestUnknownNodes(t *testing.T) {
	p := newPool()
	d := p.add("disk", 1<<20)
	f := New(p, Options{})
	stale, bad := fuse.Status(syscall.ESTALE), fuse.EBADF
	for _, want := range []fuse.Status{stale, bad} {
		id := fuse.InHeader{NodeId: nodeID(d.entry("disk"))}
		_, code := f.Read(nil, &fuse.ReadIn{InHeader: id}, make([]byte, 1))
		require.Equal(t, want, code)
		_, code = f.Write(nil, &fuse.WriteIn{InHeader: id}, make([]byte, 1))
		require.Equal(t, want, code)
		require.Equal(t, want, f.Flush(nil, &fuse.FlushIn{InHeader: id}))
		require.Equal(t, want, f.Fsync(nil, &fuse.FsyncIn{InHeader: id}))
		require.Equal(t, want, f.Fallocate(nil, &fuse.FallocateIn{InHeader: id}))
		require.Equal(t, want, f.Lseek(nil, &fuse.LseekIn{InHeader: id}, &fuse.LseekOut{}))
		if want == stale {
			require.Equal(t, stale, f.Open(nil, &fuse.OpenIn{InHeader: id}, &fuse.OpenOut{}))
			require.Equal(t, stale, f.GetAttr(nil, &fuse.GetAttrIn{InHeader: id}, &fuse.AttrOut{}))
			f.Release(nil, &fuse.ReleaseIn{InHeader: id})
			f.Forget(id.NodeId, 1)
			f.remember(d.entry("disk"))
		}
	}
}

// A forget may overtake the release.
func TestForgetBeforeRelease(t *testing.T) {
	p := newPool()
	d := p.add("disk", 1<<20)
	f := New(p, Options{})
	n := f.remember(d.entry("disk"))
	id := fuse.InHeader{NodeId: n.id}
	var out fuse.OpenOut
	require.True(t, f.Open(nil, &fuse.OpenIn{InHeader: id, Flags: unix.O_RDWR}, &out).Ok())
	require.Zero(t, out.OpenFlags, "without a way to the kernel's cache nothing is kept")
	f.Forget(n.id, 1)
	require.Len(t, f.nodes, 1)
	f.Release(nil, &fuse.ReleaseIn{InHeader: id})
	require.Empty(t, f.nodes)
	require.False(t, d.isOpen())
}

func TestSeekRefusesWrongExtents(t *testing.T) {
	_, err := seek(&liar{}, 0, 1<<30, true)
	require.ErrorIs(t, err, unix.EIO)
}

// liar is a device whose extents cover nothing.
type liar struct{ Device }

func (*liar) Extents(int64, int64) ([]Extent, error) { return nil, nil }

func TestSpans(t *testing.T) {
	c := &spanCounter{}
	off, err := seek(c, 5, 1<<50, true)
	require.NoError(t, err)
	require.Equal(t, int64(1<<50), off)
	require.Less(t, len(c.spans), 70000)
	require.Equal(t, int64(lastSpan), slices.Max(c.spans))
}

// spanCounter is a hole.
type spanCounter struct {
	Device
	spans []int64
}

func (c *spanCounter) Extents(_, length int64) ([]Extent, error) {
	c.spans = append(c.spans, length)
	return []Extent{{length, false}}, nil
}
