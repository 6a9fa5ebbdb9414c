package mounts

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	const text = `22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
37 22 0:41 /sub /with\040blank ro,nosuid - fuse.layerfs a\134b rw,user_id=0
broken
38 22 0:42 / /m`
	table := Parse(text)
	require.Len(t, table, 2)
	require.Equal(t, Mount{22, unix.Mkdev(253, 0), "/", "/", "rw,relatime", "ext4", "/dev/vda", "rw"}, table[0])
	require.Equal(t, Mount{37, unix.Mkdev(0, 41), "/sub", "/with blank", "ro,nosuid", "fuse.layerfs", `a\b`, "rw,user_id=0"}, table[1])
	_, ok := table[0].Overlay()
	require.False(t, ok)
}

func TestOverlay(t *testing.T) {
	const text = `36 35 98:0 / /merged rw shared:1 - overlay overlay rw,lowerdir=/l\134:1:/l2::/data,upperdir=/up\040per,workdir=/w,userxattr
38 35 98:0 / /m rw - overlay none rw,lowerdir+=/l2,lowerdir+=/a\054b:c,redirect_dir=on,xino=off
39 35 98:0 / /n rw - overlay none ro,lowerdir=/a\134\054b:/c`
	table := Parse(text)
	o, ok := table[0].Overlay()
	require.True(t, ok)
	require.Equal(t, Overlay{[]string{"/l:1", "/l2", "/data"}, "/up per", "/w", []string{"userxattr"}}, o)
	for dir, want := range map[string]bool{"/l:1": true, "/l2": true, "/up per": true, "/w": true, "/up": false, "/l": false} {
		require.Equal(t, want, o.Uses(dir), dir)
	}
	o, _ = table[1].Overlay()
	require.Equal(t, Overlay{Lowers: []string{"/l2", "/a,b:c"}, Options: []string{"redirect_dir=on", "xino=off"}}, o)
	o, _ = table[2].Overlay()
	require.Equal(t, []string{"/a,b", "/c"}, o.Lowers)
}
