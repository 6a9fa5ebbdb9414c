package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

func TestSubordinate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subuid")
	text := "root:1:1\n7654321:100000:65536\n  7654321:300000:10 \nother:5:5\n7654321:x:1\n7654321:1:0\n7654321:1\n\n"
	require.NoError(t, os.WriteFile(file, []byte(text), 0644))
	require.Equal(t, []span{{1, 100000, 65536}, {65537, 300000, 10}}, subordinate(file, 7654321))
	require.Empty(t, subordinate(file, 7654322))
	require.Empty(t, subordinate(file+"gone", 7654321))
}

func TestEnvironment(t *testing.T) {
	s := Spec{Env: []string{"PATH=/opt/bin:/usr/bin", "HOME=/not/there", "A=b=c"}}
	require.Equal(t, []string{"A=b=c", "PATH=/opt/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin", "HOME=/root"}, s.environment())
	home := t.TempDir()
	s.Env = []string{"HOME=" + home}
	require.Equal(t, []string{"PATH=" + defaultPath, "HOME=" + home}, s.environment())
}

// Places that are missing are made as one would see them from inside, and go
// again with all that was made for them.
func TestPlaces(t *testing.T) {
	root := t.TempDir()
	at := func(p string) string { return filepath.Join(root, p) }
	require.NoError(t, os.MkdirAll(at("etc"), 0755))
	require.NoError(t, os.Symlink("/run/x/resolv.conf", at("etc/resolv.conf")))
	require.NoError(t, os.Symlink("../../../../..", at("up")))
	require.NoError(t, os.Symlink("b", at("a")))
	require.NoError(t, os.Symlink("a", at("b")))
	var before unix.Stat_t
	require.NoError(t, unix.Stat(root, &before))
	fd, err := sys.OpenRoot(root)
	require.NoError(t, err)
	p := &places{root: fd}
	require.NoError(t, p.make("/etc/resolv.conf", false, maxLinks))
	require.FileExists(t, at("run/x/resolv.conf"))
	require.NoError(t, p.make("/up/v/w", true, maxLinks))
	require.DirExists(t, at("v/w"), "the root directory is not left")
	require.NoError(t, p.make("/etc", true, maxLinks), "it is there")
	require.ErrorIs(t, p.make("/etc", false, maxLinks), unix.EISDIR)
	require.ErrorIs(t, p.make("/etc/resolv.conf", true, maxLinks), unix.ENOTDIR)
	require.ErrorIs(t, p.make("/a/x", true, maxLinks), unix.ELOOP)
	require.NoError(t, os.WriteFile(at("v/mine"), nil, 0644))
	p.remove()
	require.NoDirExists(t, at("run"))
	require.NoDirExists(t, at("v/w"))
	require.FileExists(t, at("v/mine"), "what somebody else has made stays, and what it is in")
	var after unix.Stat_t
	require.NoError(t, unix.Stat(root, &after))
	require.Equal(t, fmt.Sprint(before.Mtim), fmt.Sprint(after.Mtim))
}
