package blockstore_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/volume"
)

// memory is an external origin in memory.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	return copy(p, m[min(off, int64(len(m))):]), nil
}

// nobody is an owner that holds nothing back.
type nobody struct{}

func (nobody) Settle(uint32) error { return nil }
func (nobody) Drop(uint32)         {}
func (nobody) GiveBack()           {}

// fileDevice opens a device over an origin, as the union does.
func fileDevice(t *testing.T, s *blockstore.Session, origin memory) *volume.Volume {
	t.Helper()
	info, err := s.Open("f")
	require.NoError(t, err)
	v, err := volume.New(s, volume.Config{ID: info.ID, Size: info.Size, BlockSize: block, Origin: info.Origin, OriginFile: origin})
	require.NoError(t, err)
	return v
}

// A device that is used as a file is what an array of bytes is, through growth,
// cuts, holes and provisioning, and whenever it is opened anew.
func TestFileModel(t *testing.T) {
	for seed := range uint64(6) {
		dir := t.TempDir() + "/pool"
		require.NoError(t, blockstore.Create(dir, blockstore.Options{DataSize: 64 << 20, Small: true}))
		p, err := blockstore.Open(dir)
		require.NoError(t, err)
		session := p.NewSession(nobody{})
		rnd := rand.New(rand.NewPCG(seed, 1))
		origin := make(memory, 5*block+rnd.IntN(3*block))
		for i := range origin {
			origin[i] = byte(rnd.Uint32())
		}
		size := int64(len(origin))
		_, err = p.CreateDevice(blockstore.NewDevice{Name: "f", Size: size,
			Origin: &blockstore.Origin{Path: "/nowhere", Size: size, Valid: size}})
		require.NoError(t, err)
		model := append([]byte(nil), origin...)
		v, alone := fileDevice(t, session, origin), 0
		for step := range 300 {
			off := rnd.Int64N(int64(len(model)) + 1)
			n := rnd.Int64N(3*block) + 1
			within := min(n, int64(len(model))-off)
			switch rnd.IntN(9) {
			case 0, 1, 2:
				end := off + n
				require.NoError(t, v.Extend(end))
				if end > int64(len(model)) {
					model = append(model, make([]byte, end-int64(len(model)))...)
				}
				data := make([]byte, n)
				for i := range data {
					data[i] = byte(rnd.Uint32())
				}
				_, err := v.WriteAt(data, off)
				require.NoError(t, err)
				copy(model[off:], data)
			case 3:
				require.NoError(t, v.Resize(off))
				model = model[:off]
			case 4:
				end := min(off+n, 12*block)
				if end > int64(len(model)) {
					require.NoError(t, v.Resize(end))
					model = append(model, make([]byte, end-int64(len(model)))...)
				}
			case 5:
				require.NoError(t, v.Zero(off, within, true))
				clear(model[off : off+within])
			case 6:
				require.NoError(t, v.Provision(context.Background(), off, within))
			case 7:
				require.NoError(t, v.Flush())
			case 8:
				require.NoError(t, v.LetGo())
				if rnd.IntN(2) == 0 {
					session.Close()
					require.NoError(t, p.Close())
					p, err = blockstore.Open(dir)
					require.NoError(t, err)
					session = p.NewSession(nobody{})
				}
				v = fileDevice(t, session, origin)
			}
			if len(model) > 12*block {
				require.NoError(t, v.Resize(12*block))
				model = model[:12*block]
			}
			got := make([]byte, len(model))
			n2, err := v.ReadAt(got, 0)
			require.NoError(t, err)
			require.Equal(t, len(model), n2)
			require.EqualValues(t, len(model), v.Size())
			require.True(t, bytes.Equal(model, got), "seed %d, step %d", seed, step)
			for at := int64(0); at < int64(len(model))+block; at += block / 2 {
				if v.OriginAlone(at, block/2) {
					alone++
					require.True(t, bytes.Equal(model[at:at+block/2], origin[at:at+block/2]), "seed %d, step %d", seed, step)
				}
			}
		}
		require.NotZero(t, alone)
		// What dm-thin would see: nothing of the origin where the file has none.
		require.NoError(t, v.Realize(context.Background(), size))
		list, err := v.Layout(0, min(size, int64(len(model))))
		require.NoError(t, err)
		for _, s := range list {
			require.NotEqual(t, volume.Zeros, s.Kind)
		}
		require.NoError(t, v.Close())
		session.Close()
		require.NoError(t, p.Close())
	}
}

// As long as somebody reads a device nobody changes or removes it.
func TestReaders(t *testing.T) {
	r := newRig(t, 8, blockstore.Options{})
	r.mustWrite("thin-0", 0, block, 7)
	r.release("thin-0")
	first, second := r.p.NewSession(nobody{}), r.p.NewSession(nobody{})
	for _, s := range []*blockstore.Session{first, second} {
		info, err := s.OpenToRead("thin-0")
		require.NoError(t, err)
		require.Error(t, s.Unmap(info.ID, 0, 1), "a reader changes nothing")
		require.Error(t, s.Resize(info.ID, block))
		m, err := s.Leaf(info.ID, 0)
		require.NoError(t, err)
		require.True(t, m.Entries[0].HasData())
	}
	_, err := r.s.Open("thin-0")
	require.ErrorIs(t, err, unix.EBUSY)
	require.ErrorIs(t, r.p.DeleteDevice(0), unix.EBUSY)
	first.Close()
	require.ErrorIs(t, r.p.DeleteDevice(0), unix.EBUSY)
	second.Close()
	_, err = r.s.Open("thin-0")
	require.NoError(t, err)
	_, err = first.OpenToRead("thin-0")
	require.ErrorIs(t, err, unix.EBUSY)
}
