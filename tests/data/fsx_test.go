package data

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand"
	"os"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

const (
	maxFile = 256 << 10
	maxOp   = 48 << 10
	page    = 4096
	// kept is how many of the handles, and of the mappings, stay from one
	// remount to the next. Across a copy-up they are of the lower file.
	kept = 2
)

// exerciser does random operations to one file.
type exerciser struct {
	path    string
	rnd     *rand.Rand
	model   []byte // what the file must hold
	handles []handle
	maps    []mapping
	buf     []byte   // aligned, for direct I/O
	modes   []uint32 // of fallocate
	dirty   bool     // a mapping may have pages that the daemon does not know
	ops     int      // done so far
	last    []string
}

type handle struct{ fd, flags int }

func (h handle) reads() bool  { return h.flags&unix.O_ACCMODE != unix.O_WRONLY }
func (h handle) writes() bool { return h.flags&unix.O_ACCMODE != unix.O_RDONLY }

// is reports whether h has the flag.
func (h handle) is(flag int) bool { return h.flags&flag != 0 }

type mapping struct {
	mem    []byte
	writes bool
}

// newExerciser returns one for the file path, which holds content. The
// base file system is that of dir: what its fallocate cannot do is left out.
func newExerciser(t *testing.T, path, dir string, content []byte, seed int) *exerciser {
	t.Helper()
	buf, err := unix.Mmap(-1, 0, maxOp+page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Munmap(buf) })
	x := &exerciser{path: path, rnd: rand.New(rand.NewSource(int64(seed))), buf: buf, model: content}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0600)
	require.NoError(t, err)
	defer unix.Close(fd)
	for _, mode := range []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
		unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE} {
		if unix.Fallocate(fd, mode, 0, page) == nil {
			x.modes = append(x.modes, mode)
		}
	}
	return x
}

// open opens the handles and mappings that the operations use.
func (x *exerciser) open() error {
	for _, flags := range []int{unix.O_RDONLY, unix.O_RDONLY | unix.O_DIRECT,
		unix.O_RDWR, unix.O_WRONLY | unix.O_APPEND, unix.O_RDWR | unix.O_DIRECT, unix.O_RDONLY} {
		if err := x.addHandle(flags); err != nil {
			return err
		}
	}
	for i := 0; i < kept+1; i++ {
		if err := x.addMap(i == kept); err != nil {
			return err
		}
	}
	return nil
}

func (x *exerciser) addHandle(flags int) error {
	fd, err := unix.Open(x.path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %#x: %w", flags, err)
	}
	x.handles = append(x.handles, handle{fd, flags &^ unix.O_TRUNC})
	return nil
}

// addMap maps the file by a handle that is closed at once: the mapping alone
// must keep it.
func (x *exerciser) addMap(writes bool) error {
	flags, prot := unix.O_RDONLY, unix.PROT_READ
	if writes {
		flags, prot = unix.O_RDWR, unix.PROT_READ|unix.PROT_WRITE
	}
	fd, err := unix.Open(x.path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open for mmap: %w", err)
	}
	defer unix.Close(fd)
	mem, err := unix.Mmap(fd, 0, maxFile, prot, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	x.maps = append(x.maps, mapping{mem, writes})
	return nil
}

func (x *exerciser) close() error {
	for _, m := range x.maps {
		if err := unix.Munmap(m.mem); err != nil {
			return fmt.Errorf("munmap: %w", err)
		}
	}
	for _, h := range x.handles {
		if err := unix.Close(h.fd); err != nil {
			return fmt.Errorf("close: %w", err)
		}
	}
	x.handles, x.maps = nil, nil
	return nil
}

// run does n operations between open and close.
func (x *exerciser) run(n int) (err error) {
	// A mapping that cannot be read is a signal, which becomes a panic.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
		if cerr := x.close(); err == nil {
			err = cerr
		}
		if err != nil {
			err = fmt.Errorf("operation %d: %w\nthe last operations:\n%s", x.ops, err, strings.Join(x.last, "\n"))
		}
	}()
	if err := x.open(); err != nil {
		return err
	}
	for i := 0; i < n; i++ {
		x.ops++
		if err := x.step(); err != nil {
			return err
		}
		if x.ops%250 == 0 || i == n-1 {
			if err := x.whole(); err != nil {
				return err
			}
		}
	}
	return nil
}

// whole compares the whole file through every handle and every mapping.
func (x *exerciser) whole() error {
	x.say("compare all")
	for i, h := range x.handles {
		var st unix.Stat_t
		if err := unix.Fstat(h.fd, &st); err != nil || st.Size != int64(len(x.model)) {
			return fmt.Errorf("handle %d shows a size of %d, want %d (%v)", i, st.Size, len(x.model), err)
		}
		if !h.reads() || h.is(unix.O_DIRECT) {
			continue
		}
		got := make([]byte, len(x.model))
		if n, err := unix.Pread(h.fd, got, 0); err != nil || n != len(got) {
			return fmt.Errorf("handle %d: read %d of %d (%v)", i, n, len(got), err)
		}
		if err := x.compare(got, 0); err != nil {
			return fmt.Errorf("handle %d: %w", i, err)
		}
	}
	for i, m := range x.maps {
		if err := x.compare(m.mem[:len(x.model)], 0); err != nil {
			return fmt.Errorf("mapping %d: %w", i, err)
		}
	}
	return nil
}

// compare compares what was read at off with the model.
func (x *exerciser) compare(got []byte, off int) error {
	want := x.model[off : off+len(got)]
	if bytes.Equal(got, want) {
		return nil
	}
	first, last, wrong := -1, 0, 0
	for i := range got {
		if got[i] != want[i] {
			if first < 0 {
				first = i
			}
			last, wrong = i, wrong+1
		}
	}
	end := min(first+48, len(got))
	return fmt.Errorf("%d bytes wrong between %#x and %#x; from %#x on is\n%swant\n%s",
		wrong, off+first, off+last, off+first, hex.Dump(got[first:end]), hex.Dump(want[first:end]))
}

// say notes what is about to be done.
func (x *exerciser) say(format string, args ...any) {
	if len(x.last) == 40 {
		x.last = x.last[1:]
	}
	x.last = append(x.last, fmt.Sprintf("%d ", x.ops)+fmt.Sprintf(format, args...))
}

var exerciserSeeds = []story{
	{1, "copied up, operation 8225: the kernel's own mistake, see exerciser.settle"},
	{2, "any"},
	{3, "any"},
	{4, "upper, operation 199,978: O_TRUNC against writes under way, see TestTruncatingOpen"},
}

// configuration says what the file is before a round of operations. Each
// begins with a mount and ends with an unmount.
type configuration struct {
	name  string
	round int // operations between two mounts
	// before is done without the mount, after with it.
	before func(e *harness.Env, content []byte) error
	after  func(e *harness.Env, path string) error
}

// putLower makes content that of the lower file, and the upper empty.
func putLower(e *harness.Env, content []byte) error {
	for _, d := range []string{"u", "w"} {
		if err := os.RemoveAll(e.P(d)); err != nil {
			return err
		}
		if err := os.Mkdir(e.P(d), 0755); err != nil {
			return err
		}
	}
	return os.WriteFile(e.P("l", "f"), content, 0644)
}

var configurations = []configuration{
	{name: "upper", round: 10000, before: func(e *harness.Env, content []byte) error {
		return os.WriteFile(e.P("u", "f"), content, 0644)
	}},
	{name: "copied up", round: 10000, before: putLower, after: func(e *harness.Env, path string) error {
		return os.Chmod(path, 0600)
	}},
	{name: "across the copy-up", round: 500, before: putLower},
}

func TestExerciser(t *testing.T) {
	total := ops(t, 4000)
	for _, c := range configurations {
		for _, s := range seeds(t, exerciserSeeds) {
			t.Run(fmt.Sprintf("%s/seed %d", c.name, s.seed), func(t *testing.T) {
				e := harness.New(t)
				content := make([]byte, 100000)
				rand.New(rand.NewSource(int64(s.seed))).Read(content)
				x := newExerciser(t, e.P("m", "f"), e.P("u"), content, s.seed)
				for x.ops < total {
					x.round(t, e, c, min(c.round, total-x.ops), s)
				}
			})
		}
	}
}

// round is one mount of a configuration.
func (x *exerciser) round(t *testing.T, e *harness.Env, c configuration, n int, s story) {
	t.Helper()
	require.NoError(t, c.before(e, x.model))
	m := e.Mount(e.RW())
	if c.after != nil {
		require.NoError(t, c.after(e, x.path))
	}
	require.NoError(t, x.run(n), "seed %d (%s)", s.seed, s.why)
	m.Unmount()
	disk, err := os.ReadFile(e.P("u", "f"))
	if os.IsNotExist(err) { // nothing has changed it in this round
		disk, err = os.ReadFile(e.P("l", "f"))
	} else if harness.MountOptions() != "" { // what is in the upper may be a stub
		m = e.Mount(e.RW())
		disk, err = os.ReadFile(x.path)
		m.Unmount()
	}
	require.NoError(t, err)
	require.NoError(t, x.compare(disk, 0), "on disk after operation %d", x.ops)
	require.Len(t, disk, len(x.model), "on disk after operation %d", x.ops)
}

// The model is right about a file system that nobody doubts, and a single
// byte that is wrong there is found.
func TestExerciserBites(t *testing.T) {
	e := harness.New(t)
	path := e.P("plain")
	require.NoError(t, os.WriteFile(path, nil, 0644))
	x := newExerciser(t, path, e.Dir, nil, 1)
	require.NoError(t, x.run(2000))

	x.model = bytes.Repeat([]byte("x"), 5000)
	bad := bytes.Clone(x.model)
	bad[4711]++
	require.NoError(t, os.WriteFile(path, bad, 0644))
	require.NoError(t, x.open())
	err := x.whole()
	require.ErrorContains(t, err, "1 bytes wrong between 0x1267 and 0x1267")
	require.NoError(t, x.close())
}
