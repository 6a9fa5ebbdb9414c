package blockstore_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/volume"
)

// Readers and writers of one device at the same time, while blocks change
// hands between devices as fast as they can: nobody ever sees a word that
// another device wrote. The pool is so small that freed blocks are used again
// at once.
func TestConcurrent(t *testing.T) {
	const devices = 3
	m := blockstore.NewMachine(1, 90)
	require.NoError(t, m.Format(blockstore.Options{DataSize: 90 * blockstore.MinBlockSize, NoDiscardPassdown: true}))
	m.Slow = true
	p, err := m.Boot()
	require.NoError(t, err)
	h := &lockedHost{host: newHost(p)}
	h.s = p.NewSession(h)
	end := time.Now().Add(2 * time.Second)
	var group sync.WaitGroup
	for d := range uint64(devices) {
		name := fmt.Sprint("d", d)
		_, err := p.CreateDevice(blockstore.NewDevice{Name: name, Size: devUnits * unit})
		require.NoError(t, err)
		v, err := h.volume(name)
		require.NoError(t, err)
		group.Go(func() { churn(t, v, d, end) })
		group.Go(func() { churnSnapshots(t, p, name, end) })
		for range 2 {
			group.Go(func() { watch(t, v, d, end) })
		}
	}
	group.Wait()
	require.NoError(t, p.Audit())
	h.closeAll()
	require.NoError(t, p.Close())
}

// lockedHost is a host that is asked for things while devices are opened.
type lockedHost struct {
	mu sync.Mutex
	*host
}

func (h *lockedHost) volume(name string) (*volume.Volume, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.host.volume(name)
}

func (h *lockedHost) find(id uint32) *volume.Volume {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open[id]
}

func (h *lockedHost) Settle(id uint32) error { return h.find(id).Settle() }
func (h *lockedHost) GiveBack() {
	for id := range uint32(3) {
		if v := h.find(id); v != nil {
			v.GiveBack()
		}
	}
}

// churn writes, discards and flushes parts of a device that has few blocks.
func churn(t *testing.T, v *volume.Volume, dev uint64, end time.Time) {
	rng := rand.New(rand.NewPCG(dev, 9))
	buf := make([]byte, 2*blockstore.MinBlockSize)
	for word := (dev + 1) << 56; time.Now().Before(end); word++ {
		off := int64(rng.IntN(8*unitsBlock)) * unit
		n := int64(1+rng.IntN(2*unitsBlock)) * unit
		blockstore.Fill(buf[:n], word)
		var err error
		switch rng.IntN(8) {
		case 0, 1:
			err = v.Discard(off, n)
		case 2, 3, 4:
			err = v.Flush()
		default:
			v.GiveBack() // so that the block is one that was freed just now
			_, err = v.WriteAt(buf[:n], off)
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
}

func churnSnapshots(t *testing.T, p *blockstore.Pool, of string, end time.Time) {
	for time.Now().Before(end) {
		d, err := p.CreateDevice(blockstore.NewDevice{Name: of + "-snap", Of: of})
		if err == nil {
			time.Sleep(5 * time.Millisecond) // settling hides what is to be seen here
			err = p.DeleteDevice(d.ID)
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
}

// watch reads all the time; zeros and words of its own device are right.
func watch(t *testing.T, v *volume.Volume, dev uint64, end time.Time) {
	rng := rand.New(rand.NewPCG(dev, 11))
	buf := make([]byte, 4*unit)
	for time.Now().Before(end) {
		off := int64(rng.IntN(10*unitsBlock)) * unit
		if _, err := v.ReadAt(buf, off); err != nil {
			t.Error(err)
			return
		}
		for i := 0; i < len(buf); i += unit {
			if w := blockstore.Word(buf[i:]); w != 0 && w>>56 != dev+1 {
				t.Errorf("device %d shows %#x", dev, w)
				return
			}
		}
	}
}
