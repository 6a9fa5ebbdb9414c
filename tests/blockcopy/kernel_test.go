package blockcopy

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// Kernel overlay is not given a branch with stubs, and is when they are settled.
func TestKernelOverlay(t *testing.T) {
	harness.RequireRoot(t)
	r := newRig(t, mib, "whiteout=overlay")
	r.write("big", []byte("x"), 3)
	r.m.Unmount()
	r.launcherGone()
	mount := func(backend string) harness.Result {
		return r.Layerfs("mount", "-o", "backend="+backend, "-o", r.RW(), r.P("m"))
	}
	res := mount("overlay")
	require.Equal(t, 6, res.Code, res.Stderr)
	require.Contains(t, res.Stderr, "copied up by blocks")
	res = mount("auto")
	require.Zero(t, res.Code, res.Stderr)
	r.m = r.Adopt(r.P("m"), r.RW())
	r.same("big")
	r.m.Unmount()
	r.launcherGone()
	res = r.Layerfs("mount", "-o", "backend=overlay,lowerdir="+r.P("u")+":"+r.P("l"), r.P("m"))
	require.Equal(t, 6, res.Code, res.Stderr)

	res = r.Layerfs("settle", "--workdir", r.P("w"), r.P("u"))
	require.Zero(t, res.Code, res.Stderr)
	res = mount("overlay")
	require.Zero(t, res.Code, res.Stderr)
	r.Sh("cat m/big > got; umount m")
	r.isPlain("big")
}
