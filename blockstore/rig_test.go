package blockstore_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/volume"
)

const block = blockstore.MinBlockSize

// rig is a pool on a simulated machine with a device called thin-0.
type rig struct {
	t *testing.T
	m *blockstore.Machine
	*host
}

func newRig(t *testing.T, blocks int64, o blockstore.Options) *rig {
	m := blockstore.NewMachine(1, blocks)
	o.DataSize = blocks * block
	require.NoError(t, m.Format(o))
	p, err := m.Boot()
	require.NoError(t, err)
	r := &rig{t, m, newHost(p)}
	t.Cleanup(func() {
		r.closeAll()
		r.p.Close()
	})
	r.create("thin-0", 1<<30)
	return r
}

func (r *rig) create(name string, size int64) {
	r.t.Helper()
	_, err := r.p.CreateDevice(blockstore.NewDevice{Name: name, Size: size})
	require.NoError(r.t, err)
}

func (r *rig) snap(of, name string) {
	r.t.Helper()
	_, err := r.p.CreateDevice(blockstore.NewDevice{Name: name, Of: of})
	require.NoError(r.t, err)
}

func (r *rig) vol(name string) *volume.Volume {
	r.t.Helper()
	v, err := r.volume(name)
	require.NoError(r.t, err)
	return v
}

// write fills n bytes at off with word w.
func (r *rig) write(name string, off, n int64, w uint64) error {
	r.t.Helper()
	buf := make([]byte, n)
	blockstore.Fill(buf, w)
	_, err := r.vol(name).WriteAt(buf, off)
	return err
}

func (r *rig) mustWrite(name string, off, n int64, w uint64) {
	r.t.Helper()
	require.NoError(r.t, r.write(name, off, n, w))
}

func (r *rig) word(name string, off int64) uint64 {
	r.t.Helper()
	buf := make([]byte, 8)
	_, err := r.vol(name).ReadAt(buf, off)
	require.NoError(r.t, err)
	return blockstore.Word(buf)
}

// settle makes everything durable and free that is on its way.
func (r *rig) settle() {
	r.t.Helper()
	for _, v := range r.open {
		require.NoError(r.t, v.Flush())
		v.GiveBack()
	}
	require.NoError(r.t, r.p.Audit())
	require.Eventually(r.t, r.p.Idle, 5*time.Second, time.Millisecond)
}

func (r *rig) used() uint64 {
	r.t.Helper()
	r.settle()
	return r.p.Status().Used
}

func (r *rig) release(name string) {
	r.t.Helper()
	info, err := r.p.Device(name)
	require.NoError(r.t, err)
	if v := r.open[info.ID]; v != nil {
		delete(r.open, info.ID)
		require.NoError(r.t, v.Close())
	}
	r.s.Release(info.ID)
}
