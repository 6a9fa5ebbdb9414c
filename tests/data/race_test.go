package data

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// Found by TestExerciser: a file was emptied by O_TRUNC and was long again.
// With FUSE_ATOMIC_O_TRUNC the kernel does not hold back what mappings have
// written before: a WRITE under way is handled after the OPEN that truncates,
// and what was old is new again. About every third round did that.
func TestTruncatingOpen(t *testing.T) {
	for name, lower := range map[string]bool{"upper": false, "across the copy-up": true} {
		t.Run(name, func(t *testing.T) {
			e := harness.New(t)
			if lower {
				e.Tree("l", "f=1")
			} else {
				e.Tree("u", "f=1")
			}
			m := e.Mount(e.RW())
			const size = 64 * page
			fd, err := unix.Open(m.P("f"), unix.O_RDWR|unix.O_CLOEXEC, 0)
			require.NoError(t, err)
			defer unix.Close(fd)
			mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			require.NoError(t, err)
			defer unix.Munmap(mem)
			for i := 0; i < 100; i++ {
				require.NoError(t, unix.Ftruncate(fd, size))
				for at := 0; at < size; at += page {
					mem[at] = 1
				}
				require.NoError(t, unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE))
				f, err := os.OpenFile(m.P("f"), os.O_RDWR|os.O_TRUNC, 0)
				require.NoError(t, err)
				require.NoError(t, f.Close())
				require.NoError(t, unix.Fsync(fd))
				require.Zero(t, harness.Stat(t, e.P("u", "f")).Size, fmt.Sprintf("on disk in round %d", i))
			}
		})
	}
}
