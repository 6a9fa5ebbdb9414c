package blockcopy

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// Stubs are read in any branch, and copied up in full where nobody asks for more.
func TestStubInLower(t *testing.T) {
	r := newRig(t, mib)
	r.write("big", []byte("in the layer"), 1000)
	r.m.Unmount()
	r.launcherGone()
	lowers := "lowerdir=" + r.P("u") + ":" + r.P("l")
	for _, d := range []string{"u3", "w3"} {
		require.NoError(t, os.Mkdir(r.P(d), 0755))
	}
	r.m = r.Mount(lowers + ",upperdir=" + r.P("u3") + ",workdir=" + r.P("w3"))
	r.same("big")
	second := r.MountOn(r.P("l2"), lowers) // two mounts read it
	got, err := os.ReadFile(second.P("big"))
	require.NoError(t, err)
	requireSame(t, r.model, got, "the second mount")
	second.Unmount()
	r.write("big", []byte("on top"), 5000)
	r.same("big")
	disk, err := os.ReadFile(r.P("u3", "big"))
	require.NoError(t, err)
	requireSame(t, r.model, disk, "the copy of a stub is whole")
}

// A stub of a lower is copied up by blocks: a snapshot in the pool that both
// share, else a device that has copies of what had been written.
func TestStubOverStub(t *testing.T) {
	for _, shared := range []bool{true, false} {
		name := "private"
		if shared {
			name = "shared"
		}
		t.Run(name, func(t *testing.T) {
			r := newRig(t, mib+77)
			pool, upperPool := r.pool(), filepath.Join(r.P("u3"), ".wh..wh.layerfs", "pool")
			more := []string{forced}
			if shared {
				pool = r.P("pool")
				upperPool = pool
				res := r.Layerfs("pool", "create", pool, "--data-size", "256M")
				require.Zero(t, res.Code, res.Stderr)
				more = append(more, "pool="+pool)
				r.m.Unmount()
				r.m = r.Mount(r.RW(more...))
			}
			r.holed()
			require.NoError(t, os.Chmod(r.m.P("big"), 0640))
			lower := append([]byte(nil), r.model...)
			r.m.Unmount()
			for _, d := range []string{"u3", "w3"} {
				require.NoError(t, os.Mkdir(r.P(d), 0755))
			}
			r.opts = "lowerdir=" + r.P("u") + ":" + r.P("l") + ",upperdir=" + r.P("u3") + ",workdir=" + r.P("w3") + "," + more[0]
			if shared {
				r.opts += "," + more[1]
			}
			r.m = r.Mount(r.opts)
			before := r.devicesIn(pool)[0]

			r.write("big", []byte("on top"), 9*block)
			r.same("big")
			text, err := os.ReadFile(r.P("u3", "big"))
			require.NoError(t, err)
			require.Contains(t, string(text), "only a stub")
			// Cut off and grown again by the first change.
			r.m.Unmount()
			noProcess(t, upperPool)
			r.Sh("rm -r u3 w3; mkdir u3 w3")
			r.m = r.Mount(r.opts)
			r.model = append([]byte(nil), lower...)
			cut := len(r.model) - 8*block
			require.NoError(t, os.Truncate(r.m.P("big"), int64(cut)))
			require.NoError(t, os.Truncate(r.m.P("big"), int64(len(r.model))))
			clear(r.model[cut:])
			r.same("big")
			copied := 3 * block // what is changed, and the ends of the hole
			if shared {
				copied = 0
			}
			require.EqualValues(t, copied, r.status().CopiedBytes)
			r.remount()
			r.same("big")
			fi, err := os.Stat(r.m.P("big"))
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0640), fi.Mode())
			r.m.Unmount()
			require.NotEmpty(t, r.devicesIn(upperPool))
			noProcess(t, upperPool)

			// The layer has not changed, and what was written on top is its own.
			r.m = r.Mount("lowerdir=" + r.P("u") + ":" + r.P("l") + "," + more[len(more)-1])
			r.model = lower
			r.same("big")
			r.m.Unmount()
			var after device
			for _, d := range r.devicesIn(pool) {
				if d.Name == before.Name {
					after = d
				}
			}
			require.Equal(t, before.Mapped, after.Mapped)
			noProcess(t, pool)
		})
	}
}

// noProcess waits until nobody has the pool open.
func noProcess(t *testing.T, pool string) {
	t.Helper()
	require.True(t, harness.Eventually(time.Minute, func() bool { return len(harness.Daemons(pool)) == 0 }), "the pool process stays")
}
