package union

import (
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/stretchr/testify/require"
)

// notPOSIX are cases that a plain directory of a kernel file system fails.
var notPOSIX = map[string]string{
	"FcntlFlockLocksFile": "expects two descriptors of one process to conflict; fcntl(2) locks belong to the process",
}

func TestPosix(t *testing.T) {
	for name, run := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			if why := notPOSIX[name]; why != "" {
				t.Skip(why)
			}
			b.mount()
			run(t, b.mnt)
		})
	}
}

// An open file without a name keeps its data, size and count of zero links,
// whichever branch it was opened in.
func TestUnlinkedButOpen(t *testing.T) {
	b := newBox(t)
	put(t, b.lower, "low=lower data", "moo=to be copied up")
	b.mount()
	put(t, b.mnt, "up=upper data")
	for name, want := range map[string]string{"low": "lower data", "up": "upper data", "moo": "to be copied up"} {
		f, err := os.OpenFile(b.mnt+"/"+name, os.O_RDWR, 0)
		require.NoError(t, err)
		require.NoError(t, os.Remove(b.mnt+"/"+name))
		buf := make([]byte, 100)
		n, _ := f.ReadAt(buf, 0)
		require.Equal(t, want, string(buf[:n]))
		_, err = f.WriteAt([]byte("changed!"), 0)
		require.NoError(t, err)
		n, _ = f.ReadAt(buf, 0)
		require.Equal(t, "changed!"+want[8:], string(buf[:n]), name)
		require.NoError(t, f.Truncate(3))
		require.NoError(t, f.Chmod(0600))
		fi, err := f.Stat()
		require.NoError(t, err)
		require.EqualValues(t, 3, fi.Size())
		put(t, b.mnt, name+"=another")
		n, _ = f.ReadAt(buf, 0)
		require.Equal(t, "cha", string(buf[:n]))
		require.Equal(t, "another", read(t, b.mnt+"/"+name))
		require.NoError(t, f.Close())
	}
}
