package union

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func procFd(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// changesOf are the ways to change a file; each gets the path and must leave
// the file as its model says.
var changesOf = map[string]struct {
	change func(t *testing.T, path string)
	model  func(old []byte) []byte
}{
	"write":              {func(t *testing.T, p string) { pwrite(t, p, unix.O_WRONLY, "NEW", 5000) }, overwrite("NEW", 5000)},
	"write past the end": {func(t *testing.T, p string) { pwrite(t, p, unix.O_RDWR, "NEW", 20000) }, overwrite("NEW", 20000)},
	"append":             {func(t *testing.T, p string) { appendTo(t, p, "END") }, func(o []byte) []byte { return append(o, "END"...) }},
	"truncating open": {func(t *testing.T, p string) {
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_TRUNC, 0)
		require.NoError(t, err)
		f.WriteString("short")
		require.NoError(t, f.Close())
	}, func([]byte) []byte { return []byte("short") }},
	"truncate": {func(t *testing.T, p string) { require.NoError(t, os.Truncate(p, 4100)) }, func(o []byte) []byte { return o[:4100] }},
	"truncate and grow": {func(t *testing.T, p string) {
		require.NoError(t, os.Truncate(p, 4100))
		require.NoError(t, os.Truncate(p, 9000))
	}, func(o []byte) []byte { return append(o[:4100:4100], make([]byte, 4900)...) }},
	"punch": {func(t *testing.T, p string) {
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		require.NoError(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 4096))
	}, func(o []byte) []byte { clear(o[4096:8192]); return o }},
	"copy_file_range into": {func(t *testing.T, p string) {
		require.NoError(t, os.WriteFile(p+".src", bytes.Repeat([]byte("S"), 6000), 0644))
		src, err := os.Open(p + ".src")
		require.NoError(t, err)
		defer src.Close()
		dst, err := os.OpenFile(p, os.O_RDWR, 0)
		require.NoError(t, err)
		defer dst.Close()
		in, out := int64(0), int64(3000)
		n, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, 6000, 0)
		require.NoError(t, err)
		require.Equal(t, 6000, n)
		require.NoError(t, os.Remove(p+".src"))
	}, func(o []byte) []byte { copy(o[3000:], bytes.Repeat([]byte("S"), 6000)); return o }},
	"mapped write": {func(t *testing.T, p string) {
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		require.NoError(t, err)
		copy(m[4090:], "MAPPED")
		require.NoError(t, unix.Msync(m, unix.MS_SYNC))
		require.NoError(t, unix.Munmap(m))
	}, overwrite("MAPPED", 4090)},
	"direct write": {func(t *testing.T, p string) {
		buf := aligned(4096)
		copy(buf, bytes.Repeat([]byte("D"), 4096))
		fd, err := unix.Open(p, unix.O_RDWR|unix.O_DIRECT, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		_, err = unix.Pwrite(fd, buf, 4096)
		require.NoError(t, err)
	}, overwrite(string(bytes.Repeat([]byte("D"), 4096)), 4096)},
}

func aligned(n int) []byte {
	b := make([]byte, n+4096)
	off := 4096 - int(uintptr(unsafe.Pointer(&b[0]))%4096)
	return b[off : off+n]
}

func overwrite(s string, at int) func([]byte) []byte {
	return func(o []byte) []byte {
		if need := at + len(s) - len(o); need > 0 {
			o = append(o, make([]byte, need)...)
		}
		copy(o[at:], s)
		return o
	}
}

func pwrite(t *testing.T, p string, flags int, s string, at int64) {
	t.Helper()
	fd, err := unix.Open(p, flags, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = unix.Pwrite(fd, []byte(s), at)
	require.NoError(t, err)
}

// TestCoherence: a lower file is read, and so cached, through several names,
// handles and a mapping, then changed in one way, then in another. Nobody may
// see a stale byte, size, time or link count: this is the class of bug that has hurt
// users of FUSE unions most (fuse-overlayfs #475).
func TestCoherence(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	for first, a := range changesOf {
		for second, c := range changesOf {
			t.Run(first+", "+second, func(t *testing.T) {
				b := newBox(t)
				require.NoError(t, os.WriteFile(b.lower+"/f", content, 0644))
				require.NoError(t, os.Link(b.lower+"/f", b.lower+"/g"))
				umount := b.mount("fsync=0")
				v := newViews(t, b.mnt+"/f", b.mnt+"/g")
				v.check(t, content, 2)
				a.change(t, b.mnt+"/f")
				want := a.model(bytes.Clone(content))
				v.check(t, want, 2)
				v.add(t, b.mnt+"/g") // handles from after the copy-up
				if len(want) < 16000 {
					require.NoError(t, os.WriteFile(b.mnt+"/g", content, 0644))
					want = bytes.Clone(content)
					v.check(t, want, 2)
				}
				c.change(t, b.mnt+"/g")
				want = c.model(want)
				v.check(t, want, 2)
				require.NoError(t, os.Remove(b.mnt+"/f"))
				v.names = v.names[1:]
				v.check(t, want, 1)
				v.close()
				umount()
				require.NoError(t, os.RemoveAll(b.work)) // a work directory is scratch to others
				require.NoError(t, os.Mkdir(b.work, 0755))
				umount = b.mount("fsync=0")
				require.True(t, bytes.Equal(want, []byte(read(t, b.mnt+"/g"))), "after a remount")
				umount()
				require.Equal(t, content, []byte(read(t, b.lower+"/f")), "the lower has changed")
			})
		}
	}
}

// views are the ways in which one file is looked at.
type views struct {
	names []string
	files []*os.File
	maps  [][]byte
}

func newViews(t *testing.T, names ...string) *views {
	v := &views{names: names}
	for _, n := range names {
		v.add(t, n)
	}
	t.Cleanup(v.close)
	return v
}

func (v *views) add(t *testing.T, name string) {
	t.Helper()
	for _, flags := range []int{os.O_RDONLY, os.O_RDWR} {
		f, err := os.OpenFile(name, flags, 0)
		require.NoError(t, err)
		v.files = append(v.files, f)
	}
	m, err := unix.Mmap(int(v.files[len(v.files)-2].Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	v.maps = append(v.maps, m)
}

func (v *views) close() {
	for _, m := range v.maps {
		unix.Munmap(m)
	}
	for _, f := range v.files {
		f.Close()
	}
	v.maps, v.files = nil, nil
}

func (v *views) check(t *testing.T, want []byte, links int) {
	t.Helper()
	for _, n := range v.names {
		st := stat(t, n)
		require.EqualValues(t, len(want), st.Size, n)
		require.EqualValues(t, links, st.Nlink, n)
		require.True(t, bytes.Equal(want, []byte(read(t, n))), "stale bytes by name %s", n)
	}
	for i, f := range v.files {
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(int(f.Fd()), &st))
		require.EqualValues(t, len(want), st.Size)
		got := make([]byte, len(want)+10)
		n, _ := f.ReadAt(got, 0)
		require.True(t, bytes.Equal(want, got[:n]), "stale bytes by handle %d", i)
	}
	if len(want) < 4096 {
		return
	}
	for i, m := range v.maps {
		require.True(t, bytes.Equal(want[:4096], m), "stale bytes by mapping %d", i)
	}
}

// What a write does to set-user-id must be seen at once, by exec and stat.
func TestWriteClearsSetUserID(t *testing.T) {
	needRoot(t)
	b := newBox(t)
	put(t, b.lower, "f=x")
	require.NoError(t, unix.Chmod(b.lower+"/f", 06777))
	b.mount()
	require.EqualValues(t, 06777, stat(t, b.mnt+"/f").Mode&07777)
	out, err := runFor(5e9, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", "echo y >> "+b.mnt+"/f")
	require.NoError(t, err, out)
	require.EqualValues(t, 0777, stat(t, b.mnt+"/f").Mode&07777)
}
