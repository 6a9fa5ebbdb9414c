package blockcopy

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// automatic mounts in the form that copies up as is best where it is.
func (r *rig) automatic() {
	r.t.Helper()
	r.opts = r.RW("backend=fuse")
	res := r.Layerfs("mount", "-o", r.opts, r.P("m"))
	require.Zero(r.t, res.Code, res.Stderr)
	r.m = r.Adopt(r.P("m"), r.opts)
}

// Where content cannot be shared, `layerfs mount` takes blocks by itself; where no
// pool can be, it copies all.
func TestAuto(t *testing.T) {
	e := harness.New(t)
	if e.Sh("head -c 70000 /dev/urandom > a; cp --reflink=always a b 2> /dev/null && echo yes || true") != "" {
		t.Skip("files can share content here")
	}
	r := &rig{Env: e, t: t, model: noise(1, mib)}
	require.NoError(t, os.WriteFile(r.P("l", "big"), r.model, 0644))
	require.NoError(t, os.WriteFile(r.P("l", "cut"), noise(2, mib), 0644))
	r.automatic()
	r.write("big", []byte("auto"), 1000)
	require.NoError(t, os.Truncate(r.m.P("cut"), 300<<10))
	r.same("big")
	r.isStub("big")
	r.isStub("cut")
	r.m.Unmount()
	r.launcherGone()

	r.Sh("rm -r u w; mkdir -p u/.wh..wh.layerfs w; touch u/.wh..wh.layerfs/pool")
	r.model = noise(1, mib)
	r.automatic()
	r.write("big", []byte("in full"), 1000)
	r.same("big")
	r.isPlain("big")
	require.True(t, contains(r.status().Troubles, "no copy-up by blocks"))
}

// Where content can be shared, it is.
func TestAutoReflink(t *testing.T) {
	harness.RequireRoot(t)
	harness.RequireTool(t, "mkfs.xfs", "xfsprogs")
	e := harness.New(t)
	e.Sh("truncate -s 320M img; mkfs.xfs -q -m reflink=1 img; mkdir fs; mount -o loop img fs; mkdir fs/l fs/u fs/w")
	defer func() {
		require.True(t, harness.Eventually(10*time.Second, func() bool { return unix.Unmount(e.P("fs"), 0) == nil }), "busy")
		require.True(t, harness.Eventually(time.Minute, func() bool { return e.Sh("losetup -j img") == "" }), "the loop device stays")
	}()
	e.Sh("rmdir l u w; ln -s fs/l fs/u fs/w .")
	r := &rig{Env: e, t: t, model: noise(1, mib)}
	require.NoError(t, os.WriteFile(r.P("l", "big"), r.model, 0644))
	require.NoError(t, os.WriteFile(r.P("l", "cut"), r.model, 0644))
	r.automatic()
	r.write("big", []byte("auto"), 1000)
	r.same("big")
	r.isPlain("big")
	require.Contains(t, r.Sh("sync; filefrag -v fs/u/big"), "shared")
	r.model = r.model[:300<<10]
	copy(r.model, noise(1, 2000))
	require.NoError(t, os.Truncate(r.m.P("cut"), 300<<10))
	r.same("cut")
	r.isPlain("cut")
	r.m.Unmount()
	r.launcherGone()
	require.NoDirExists(t, r.P("u", ".wh..wh.layerfs"))
}
