package blockstore_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/volume"
)

const (
	unit       = blockstore.Unit
	unitsBlock = blockstore.MinBlockSize / unit
	devUnits   = 24 * unitsBlock // a device has 24 blocks
)

// plain is what a device must show: for every unit the word in it, and what
// else a crash may bring back.
type plain struct {
	now   [devUnits]uint64
	maybe map[int][]uint64 // units changed since the last flush: what they were
}

func (d *plain) set(u int, w uint64) {
	if d.maybe == nil {
		d.maybe = map[int][]uint64{}
	}
	d.maybe[u] = append(d.maybe[u], d.now[u])
	d.now[u] = w
}

// host opens devices of a pool and passes the pool's wishes on.
type host struct {
	p    *blockstore.Pool
	s    *blockstore.Session
	open map[uint32]*volume.Volume
}

func newHost(p *blockstore.Pool) *host {
	h := &host{p: p, open: map[uint32]*volume.Volume{}}
	h.s = p.NewSession(h)
	return h
}

func (h *host) Settle(id uint32) error {
	if v := h.open[id]; v != nil {
		return v.Settle()
	}
	return nil
}

func (h *host) Drop(id uint32) {}

func (h *host) GiveBack() {
	for _, v := range h.open {
		v.GiveBack()
	}
}

func (h *host) volume(name string) (*volume.Volume, error) {
	info, err := h.s.Open(name)
	if err != nil {
		return nil, err
	}
	if v := h.open[info.ID]; v != nil {
		return v, nil
	}
	v, err := volume.New(h.s, volume.Config{ID: info.ID, Size: info.Size, BlockSize: blockstore.MinBlockSize})
	if err == nil {
		h.open[info.ID] = v
	}
	return v, err
}

func (h *host) closeAll() {
	for _, v := range h.open {
		v.Close()
	}
	h.s.Close()
	clear(h.open)
}

// history applies random operations to a pool on a simulated machine and to
// plain arrays, crashes it at random steps, and compares.
type history struct {
	t       *testing.T
	rng     *rand.Rand
	m       *blockstore.Machine
	h       *host
	devs    map[string]*plain
	unsure  map[string]*plain // devices whose creation or removal a crash cut short
	words   uint64
	made    int
	buf     []byte
	crashes int
}

func (y *history) names() []string {
	var out []string
	for n := range y.devs {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func (y *history) pick() string {
	names := y.names()
	return names[y.rng.IntN(len(names))]
}

func (y *history) boot() {
	p, err := y.m.Boot()
	require.NoError(y.t, err)
	require.Equal(y.t, "rw", p.Status().Mode, p.Status().Cause)
	y.h = newHost(p)
}

// step does one operation; its error is a crash, or wrong.
func (y *history) step() error {
	if len(y.devs) == 0 {
		return y.create("")
	}
	switch n := y.rng.IntN(100); {
	case n < 55:
		return y.write()
	case n < 63:
		return y.discard()
	case n < 68:
		return y.zero()
	case n < 80:
		return y.flush()
	case n < 84 && len(y.devs) < 12:
		return y.create("")
	case n < 91 && len(y.devs) < 12:
		return y.create(y.pick())
	case n < 95:
		return y.remove()
	case n < 96:
		return y.closeDevice()
	default:
		return y.compare(y.pick())
	}
}

// span picks a range of units, often whole blocks.
func (y *history) span() (from, to int) {
	if y.rng.IntN(3) == 0 {
		from = y.rng.IntN(devUnits/unitsBlock) * unitsBlock
		return from, min(devUnits, from+(1+y.rng.IntN(3))*unitsBlock)
	}
	from = y.rng.IntN(devUnits)
	return from, min(devUnits, from+1+y.rng.IntN(40))
}

// pickOpen picks a device and opens it.
func (y *history) pickOpen() (*volume.Volume, *plain, error) {
	name := y.pick()
	v, err := y.h.volume(name)
	return v, y.devs[name], err
}

func (y *history) write() error {
	v, d, err := y.pickOpen()
	if err != nil {
		return err
	}
	from, to := y.span()
	for u := from; u < to; u++ {
		y.words++
		d.set(u, y.words)
		blockstore.Fill(y.buf[(u-from)*unit:(u-from+1)*unit], y.words)
	}
	_, err = v.WriteAt(y.buf[:(to-from)*unit], int64(from)*unit)
	return err
}

func (y *history) discard() error {
	v, d, err := y.pickOpen()
	if err != nil {
		return err
	}
	from, to := y.span()
	for b := (from + unitsBlock - 1) / unitsBlock; b < to/unitsBlock; b++ {
		for u := b * unitsBlock; u < (b+1)*unitsBlock; u++ {
			d.set(u, 0)
		}
	}
	return v.Discard(int64(from)*unit, int64(to-from)*unit)
}

func (y *history) zero() error {
	v, d, err := y.pickOpen()
	if err != nil {
		return err
	}
	from, to := y.span()
	for u := from; u < to; u++ {
		d.set(u, 0)
	}
	return v.Zero(int64(from)*unit, int64(to-from)*unit, y.rng.IntN(2) == 0)
}

func (y *history) flush() error {
	v, d, err := y.pickOpen()
	if err == nil {
		if err = v.Flush(); err == nil {
			d.maybe = nil
		}
	}
	return err
}

func (y *history) create(of string) error {
	y.made++
	name := fmt.Sprintf("d%d", y.made)
	d := &plain{}
	if of != "" {
		d.now = y.devs[of].now
	}
	y.unsure[name] = d
	_, err := y.h.p.CreateDevice(blockstore.NewDevice{Name: name, Of: of, Size: devUnits * unit})
	if err == nil {
		delete(y.unsure, name)
		y.devs[name] = d
	}
	return err
}

func (y *history) remove() error {
	name := y.pick()
	if err := y.closeNamed(name); err != nil {
		return err
	}
	info, err := y.h.p.Device(name)
	if err != nil {
		return err
	}
	y.unsure[name] = y.devs[name]
	delete(y.devs, name)
	if err = y.h.p.DeleteDevice(info.ID); err == nil {
		delete(y.unsure, name)
	}
	return err
}

func (y *history) closeDevice() error { return y.closeNamed(y.pick()) }

func (y *history) closeNamed(name string) error {
	info, err := y.h.p.Device(name)
	if err != nil {
		return err
	}
	v := y.h.open[info.ID]
	if v == nil {
		return nil
	}
	delete(y.h.open, info.ID)
	err = v.Close()
	y.h.s.Release(info.ID)
	if err == nil {
		y.devs[name].maybe = nil
	}
	return err
}

// compare reads a device whole.
func (y *history) compare(name string) error {
	v, err := y.h.volume(name)
	if err != nil {
		return err
	}
	buf := make([]byte, devUnits*unit)
	if _, err := v.ReadAt(buf, 0); err != nil {
		return err
	}
	for u := range devUnits {
		got := blockstore.Word(buf[u*unit:])
		require.Equal(y.t, y.devs[name].now[u], got, "device %s unit %d", name, u)
	}
	return nil
}

// recover restarts the machine and checks that every device shows, unit for
// unit, something that it may show.
func (y *history) recover() {
	y.crashes++
	y.h.closeAll()
	y.h.p.Close()
	y.m.Restart(y.rng.IntN(2) == 0)
	y.boot()
	infos, err := y.h.p.Devices()
	require.NoError(y.t, err)
	found := map[string]bool{}
	for _, info := range infos {
		found[info.Name] = true
		if d := y.unsure[info.Name]; d != nil {
			y.devs[info.Name] = d
		}
		require.Contains(y.t, y.devs, info.Name)
	}
	clear(y.unsure)
	for _, name := range y.names() {
		require.True(y.t, found[name], "device %s is gone", name)
		y.adopt(name)
	}
	require.NoError(y.t, y.h.p.Audit())
}

// adopt takes what the device shows for what it holds.
func (y *history) adopt(name string) {
	v, err := y.h.volume(name)
	require.NoError(y.t, err)
	d := y.devs[name]
	buf := make([]byte, devUnits*unit)
	_, err = v.ReadAt(buf, 0)
	require.NoError(y.t, err)
	for u := range devUnits {
		got := blockstore.Word(buf[u*unit:])
		if got != d.now[u] && !slices.Contains(d.maybe[u], got) {
			y.t.Fatalf("device %s unit %d after a crash: %d, want %d or one of %v", name, u, got, d.now[u], d.maybe[u])
		}
		d.now[u] = got
	}
	d.maybe = nil
}

func (y *history) run(ops int) {
	for i := range ops {
		if !y.m.Down() && y.rng.IntN(400) == 0 {
			y.m.Plan(1+y.rng.IntN(300), 0)
		}
		err := y.step()
		if y.m.Down() {
			y.recover()
			continue
		}
		require.NoError(y.t, err, "operation %d", i)
		if i%500 == 0 {
			if err := y.h.p.Audit(); !y.m.Down() {
				require.NoError(y.t, err, "operation %d", i)
			}
		}
	}
	y.m.Plan(0, 0)
	if y.m.Down() {
		y.recover()
	}
	for _, name := range y.names() {
		require.NoError(y.t, y.compare(name))
	}
	require.NoError(y.t, y.h.p.Audit())
	y.h.closeAll()
	require.NoError(y.t, y.h.p.Close())
}

// TestModel compares pools with plain arrays. LAYERFS_TEST_OPS and
// LAYERFS_TEST_SEED make it longer and different; seeds that found something
// are kept here.
func TestModel(t *testing.T) {
	ops := 30000
	if testing.Short() {
		ops = 3000
	}
	if s := os.Getenv("LAYERFS_TEST_OPS"); s != "" {
		ops, _ = strconv.Atoi(s)
	}
	seeds := []uint64{1, 2, 3}
	if s := os.Getenv("LAYERFS_TEST_SEED"); s != "" {
		n, _ := strconv.ParseUint(s, 10, 64)
		seeds = []uint64{n}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			// More blocks than twelve devices can ever need at a time.
			m := blockstore.NewMachine(seed, 1200)
			require.NoError(t, m.Format(blockstore.Options{DataSize: 1200 * blockstore.MinBlockSize}))
			y := &history{t: t, rng: rand.New(rand.NewPCG(seed, 2)), m: m, devs: map[string]*plain{}, unsure: map[string]*plain{},
				buf: make([]byte, devUnits*unit)}
			y.boot()
			y.run(ops)
			t.Logf("%d operations, %d crashes, %d punches, all devices as they should be", ops, y.crashes, m.Punches)
		})
	}
}

// TestEveryStep crashes one short history at each of its steps in turn.
func TestEveryStep(t *testing.T) {
	for crash := 1; ; crash++ {
		m := blockstore.NewMachine(uint64(crash), 400)
		require.NoError(t, m.Format(blockstore.Options{DataSize: 400 * blockstore.MinBlockSize}))
		y := &history{t: t, rng: rand.New(rand.NewPCG(7, 7)), m: m, devs: map[string]*plain{}, unsure: map[string]*plain{},
			buf: make([]byte, devUnits*unit)}
		y.boot()
		m.Plan(crash, 0)
		for range 60 {
			if err := y.step(); m.Down() {
				break
			} else {
				require.NoError(t, err)
			}
		}
		done := !m.Down()
		y.recover()
		y.h.closeAll()
		require.NoError(t, y.h.p.Close())
		if done {
			t.Logf("%d steps", crash-1)
			require.Greater(t, crash, 50)
			return
		}
	}
}
