package blockcopy

import (
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE

// holed changes the file in all ways that a device's record must know of.
func (r *rig) holed() {
	r.t.Helper()
	r.write("big", []byte("changed"), 5*block+9)
	f, err := os.OpenFile(r.m.P("big"), os.O_RDWR, 0)
	require.NoError(r.t, err)
	require.NoError(r.t, unix.Fallocate(int(f.Fd()), punch, 2*block+5, 2*block))
	clear(r.model[2*block+5 : 4*block+5])
	cut := len(r.model) - 3*block - 77
	require.NoError(r.t, f.Truncate(int64(cut)))
	require.NoError(r.t, f.Truncate(int64(len(r.model))))
	clear(r.model[cut:])
	require.NoError(r.t, f.Close())
	r.same("big")
}

// The pool shows the device, over its lower file, as a file and by NBD.
func TestPoolShows(t *testing.T) {
	r := newRig(t, mib)
	r.holed()
	r.m.Unmount()
	r.launcherGone()
	name := r.devices()[0].Name
	require.NoError(t, os.Mkdir(r.P("pm"), 0755))
	res := r.Layerfs("pool", "mount", r.pool(), r.P("pm"))
	require.Zero(t, res.Code, res.Stderr)
	got, err := os.ReadFile(r.P("pm", name))
	require.NoError(t, err)
	requireSame(t, r.model, got, "through pool mount")
	require.NoError(t, os.WriteFile(r.P("x"), []byte("by the pool"), 0644))
	r.Sh("dd if=x of=pm/" + name + " bs=1 seek=300 conv=notrunc status=none; fusermount3 -u pm")
	copy(r.model[300:], "by the pool")
	require.True(t, harness.Eventually(10*time.Second, func() bool { return r.poolProcess() == 0 }))
	r.m = r.Mount(r.opts)
	r.same("big")
}

// NBD shows the device over its lower file, to be read and written.
func TestNBD(t *testing.T) {
	harness.RequireTool(t, "nbdcopy", "libnbd-bin")
	r := newRig(t, mib+77)
	r.holed()
	r.m.Unmount()
	r.launcherGone()
	cmd := exec.Command(harness.Bin(), "pool", "serve", r.pool(), "--nbd", "unix:"+r.P("s"))
	require.NoError(t, cmd.Start())
	ended := false
	end := func() {
		if !ended {
			ended = true
			_ = cmd.Process.Signal(syscall.SIGTERM)
			require.NoError(t, cmd.Wait(), "serve must end well")
		}
	}
	defer end()
	require.True(t, harness.Eventually(time.Minute, func() bool { _, err := os.Stat(r.P("s")); return err == nil }))
	uri := "'nbd+unix:///" + r.devices()[0].Name + "?socket=" + r.P("s") + "'"
	r.Sh("nbdcopy " + uri + " got")
	got, err := os.ReadFile(r.P("got"))
	require.NoError(t, err)
	requireSame(t, r.model, got, "by NBD")
	// Where the lower shows, where it was cut off, and where there is a block.
	for _, off := range []int{7*block + 100, 14*block + 100, 5*block + 100} {
		copy(r.model[off:], "written by NBD")
	}
	require.NoError(t, os.WriteFile(r.P("new"), r.model, 0644))
	r.Sh("nbdcopy new " + uri)
	end()
	r.launcherGone()
	r.m = r.Mount(r.opts)
	r.same("big")
}

// thinPool is what thin_dump's XML says of a pool.
type thinPool struct {
	Block   int64 `xml:"data_block_size,attr"` // sectors
	Devices []struct {
		Single []struct {
			Virtual int64 `xml:"origin_block,attr"`
			Data    int64 `xml:"data_block,attr"`
		} `xml:"single_mapping"`
		Range []struct {
			Virtual int64 `xml:"origin_begin,attr"`
			Data    int64 `xml:"data_begin,attr"`
			Length  int64 `xml:"length,attr"`
		} `xml:"range_mapping"`
	} `xml:"device"`
}

// asThin returns what dm-thin shows of the only device of the dumped pool over
// the external origin, and how many blocks it maps.
func (r *rig) asThin(dump, origin string, size int64) (content []byte, mapped int64) {
	r.t.Helper()
	var p thinPool
	require.NoError(r.t, xml.Unmarshal([]byte(dump), &p))
	require.Len(r.t, p.Devices, 1)
	low, err := os.ReadFile(origin)
	require.NoError(r.t, err)
	data, err := os.ReadFile(filepath.Join(r.pool(), "data"))
	require.NoError(r.t, err)
	bs := p.Block * 512
	content = make([]byte, (size+bs-1)/bs*bs)
	copy(content, low[:len(low)/512*512]) // a block device has whole sectors
	put := func(virtual, block int64) {
		copy(content[virtual*bs:(virtual+1)*bs], data[block*bs:])
		mapped++
	}
	for _, m := range p.Devices[0].Single {
		put(m.Virtual, m.Data)
	}
	for _, m := range p.Devices[0].Range {
		for i := range m.Length {
			put(m.Virtual+i, m.Data+i)
		}
	}
	return content[:size], mapped
}

// What is dumped for dm-thin has blocks for zeros and for what is cut off.
func TestDump(t *testing.T) {
	r := newRig(t, mib+77)
	r.holed()
	// What is grown, and a hole there, behind the end of the lower file.
	r.write("big", noise(5, block), 20*block)
	f, err := os.OpenFile(r.m.P("big"), os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Fallocate(int(f.Fd()), punch, 18*block, 2*block+500))
	clear(r.model[20*block : 20*block+500])
	require.NoError(t, f.Close())
	r.m.Unmount()
	before := r.devices()[0].Mapped
	res := r.Layerfs("pool", "dump", r.pool())
	require.Zero(t, res.Code, res.Stderr)
	after := r.devices()[0].Mapped
	require.Greater(t, after, before)
	// Blocks: 2, 3 and 4 for the hole, 5 that was changed, the last four
	// of the lower, and 20 behind it.
	require.EqualValues(t, 9*block, after)
	got, mapped := r.asThin(res.Stdout, r.P("l", "big"), int64(len(r.model)))
	require.EqualValues(t, 9, mapped)
	requireSame(t, r.model, got, "as dm-thin shows it")
	r.m = r.Mount(r.opts)
	r.same("big")
}

// A lower file whose last sector is in part: a block device does not show that,
// the dumped device does.
func TestDumpOddEnd(t *testing.T) {
	r := newRig(t, mib+77)
	r.write("big", []byte("x"), 3)
	r.m.Unmount()
	res := r.Layerfs("pool", "dump", r.pool())
	require.Zero(t, res.Code, res.Stderr)
	got, mapped := r.asThin(res.Stdout, r.P("l", "big"), int64(len(r.model)))
	require.EqualValues(t, 2, mapped)
	requireSame(t, r.model, got, "as dm-thin shows it")
	r.launcherGone()
}
