package branchtools

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// An upper that kernel overlay has written is in order, and becomes one of
// AUFS's that shows the same.
func TestUpperOfTheKernel(t *testing.T) {
	harness.RequireRoot(t)
	s := newStage(t)
	opts := fmt.Sprintf("lowerdir=%s:%s,upperdir=%s,workdir=%s,redirect_dir=on,index=on", s.P("l"), s.P("l2"), s.P("u"), s.P("w"))
	require.NoError(t, unix.Mount("overlay", s.P("m"), "overlay", 0, opts))
	everything(t, s.P("m"))
	require.NoError(t, unix.Unmount(s.P("m"), 0))
	require.Contains(t, s.ok(s.checkArgs()...), "no format recorded")
	s.ok(s.checkArgs()...)
	s.convertedFrom("trusted.")
}

// So is one that fuse-overlayfs has written.
func TestUpperOfFuseOverlayfs(t *testing.T) {
	harness.RequireTool(t, "fuse-overlayfs", "fuse-overlayfs")
	s := newStage(t)
	s.Sh(fmt.Sprintf("fuse-overlayfs -o lowerdir=%s:%s,upperdir=%s,workdir=%s m", s.P("l"), s.P("l2"), s.P("u"), s.P("w")))
	m := s.P("m")
	s.Sh("cd m; rm -r a d c/x; mkdir d; echo new > d/new; chmod 600 hard1; echo 1 > c/z")
	s.Sh("fusermount3 -u m")
	require.False(t, harness.Mounted(m))
	s.ok("check", "--lower", s.P("l"), "--lower", s.P("l2"), s.P("u"))
	s.convertedFrom("")
}

// convertedFrom converts an upper that others have written through all dialects.
func (s *stage) convertedFrom(ns string) {
	s.T.Helper()
	before := s.seen()
	for _, to := range []string{"aufs", "xattr", "overlay", "aufs"} {
		s.ok("convert", "--to", to, s.P("u"))
		require.Equal(s.T, before, s.seen(), "converted to %s", to)
		s.ok(s.checkArgs()...)
	}
	raw := s.Sh("find u -type c; getfattr -dR -m 'overlay.(opaque|redirect)' u 2>&1 | grep overlay. || true")
	require.Empty(s.T, strings.TrimSpace(raw), "nothing but aufs is left")
	require.FileExists(s.T, s.P("u/.wh.a"))
	if ns != "" {
		_, err := os.Stat(s.P("u/.wh.c"))
		require.NoError(s.T, err, "the directory that was moved")
	}
}

// Many whiteouts and a deep tree take their time, and no more.
func TestLarge(t *testing.T) {
	s := newStage(t)
	s.Sh(`mkdir -p u/many; cd u/many; seq 10000 | sed 's/^/.wh.n/' | xargs touch`)
	s.Sh(`p=u; for i in $(seq 400); do p=$p/d; mkdir $p; done; touch $p/.wh.end`)
	for _, to := range []string{"xattr", "overlay", "aufs"} {
		require.Contains(t, s.ok("convert", "--to", to, s.P("u")), "changes in 402 directories")
		require.Contains(t, s.ok("check", s.P("u")), "clean")
	}
	require.FileExists(t, s.P("u/many/.wh.n10000"))
}
