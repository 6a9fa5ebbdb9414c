package offline

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/whiteout"
)

func TestOverlaysOn(t *testing.T) {
	const info = `36 35 98:0 / /merged rw,relatime shared:1 - overlay overlay rw,lowerdir=/l\134:1:/l2,upperdir=/up\040per,workdir=/w
37 35 98:0 / /other rw - ext4 /up rw,upperdir=/l2
38 35 98:0 / /with\040blank rw - overlay none rw,lowerdir+=/l2,lowerdir+=/a\054b,redirect_dir=on
39 35 broken`
	for dir, want := range map[string][]string{
		"/up per": {"/merged"},
		"/up":     nil,
		"/l:1":    {"/merged"},
		"/l2":     {"/merged", "/with blank"},
		"/a,b":    {"/with blank"},
		"/w":      {"/merged"},
		"/l":      nil,
	} {
		require.Equal(t, want, overlaysOn(info, dir), dir)
	}
}

// A process that has /dev/fuse and the directory open uses it: this one.
func TestDaemonIsFound(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	require.False(t, servesFrom("/proc/self", dir))
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("/dev/fuse cannot be opened: %v", err)
	}
	defer fuse.Close()
	require.False(t, servesFrom("/proc/self", dir))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.True(t, servesFrom("/proc/self", dir))
	_, err = OpenAlone(dir, "")
	require.Equal(t, errs.Busy, errs.Of(err))
	require.ErrorContains(t, err, dir)
}

// The private directory of a br= branch is found without being told, and its
// lock is respected.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, whiteout.PrivateDir, "layerfs"), 0700))
	u, err := OpenAlone(dir, "")
	require.NoError(t, err)
	require.Equal(t, whiteout.PrivateDir, filepath.Base(u.WorkDir))
	require.GreaterOrEqual(t, u.Keep, 0)
	require.Negative(t, u.Tmp)
	_, err = OpenAlone(dir, "")
	require.Equal(t, errs.Busy, errs.Of(err))
	look, err := Open(dir, "")
	require.NoError(t, err, "looking is allowed")
	require.Len(t, look.Users, 1)
	look.Close()
	u.Close()
	u, err = OpenAlone(dir, "")
	require.NoError(t, err)
	u.Close()
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0644))
	for _, c := range []struct {
		class     errs.Class
		dir, work string
		names     string
	}{
		{errs.NotFound, filepath.Join(dir, "gone"), "", "gone"},
		{errs.Usage, file, "", "not a directory"},
		{errs.NotFound, dir, filepath.Join(dir, "lost"), "lost"},
		{errs.Usage, dir, file, "file is not a directory"},
	} {
		_, err := Open(c.dir, c.work)
		require.Equal(t, c.class, errs.Of(err), "%v", err)
		require.ErrorContains(t, err, c.names)
	}
}
