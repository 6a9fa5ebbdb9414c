package blockstore

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Machine is the disk of a computer that can lose its power at any step: an
// index and a data file that remember what was made durable.
type Machine struct {
	mu      sync.Mutex
	rng     *rand.Rand
	keys    map[string][]byte // durable, as a log-structured store with synced writes has them
	units   map[int64]uint64  // offset / unit → the word that fills it, as written
	durable map[int64]uint64  // the same, as synced
	size    int64
	step    int
	crashAt int // step at which everything stops; 0 never
	failAt  int // step that fails once, with EIO
	down    bool
	Free    int64 // bytes that the host has left
	Punches int
	Slow    bool // reads and writes of data begin late now and then; set before Boot
}

// Unit is the granularity of the simulated data file: written whole, with
// one repeated word.
const Unit = 4096

var (
	errDown  = errors.New("the power is off")
	errFault = errors.New("input/output error, on purpose")
)

func NewMachine(seed uint64, blocks int64) *Machine {
	return &Machine{rng: rand.New(rand.NewPCG(seed, 1)), keys: map[string][]byte{}, units: map[int64]uint64{},
		durable: map[int64]uint64{}, size: blocks * MinBlockSize, Free: 1 << 40}
}

// Format makes a pool on the machine.
func (m *Machine) Format(o Options) error {
	if err := o.check(); err != nil {
		return err
	}
	return format(m, superblock{Options: o, Blocks: uint64(m.size) / uint64(o.BlockSize)}, nil)
}

// Boot opens the pool.
func (m *Machine) Boot() (*Pool, error) { return newPool(m, (*machineData)(m)) }

// SetFree says how many bytes the host's disk has left.
func (m *Machine) SetFree(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.Free = n
}

// Plan has the machine stop, or fail, a number of steps from now.
func (m *Machine) Plan(crash, fail int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashAt, m.failAt = 0, 0
	if crash > 0 {
		m.crashAt = m.step + crash
	}
	if fail > 0 {
		m.failAt = m.step + fail
	}
}

// Down reports whether the planned crash has come.
func (m *Machine) Down() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.down
}

// Restart is the power coming back: with cut, any subset of what was not
// synced is lost; without, only the process had died.
func (m *Machine) Restart(cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if cut {
		for u, w := range m.units {
			if m.durable[u] != w && m.rng.IntN(2) == 0 {
				m.put(m.units, u, m.durable[u])
			}
		}
		for u, w := range m.durable {
			if m.units[u] != w && m.rng.IntN(2) == 0 {
				m.units[u] = w
			}
		}
	}
	m.durable = maps.Clone(m.units)
	m.down, m.crashAt, m.failAt = false, 0, 0
}

func (m *Machine) put(to map[int64]uint64, u int64, w uint64) {
	if w == 0 {
		delete(to, u)
	} else {
		to[u] = w
	}
}

// next counts a step and says whether it happens. mu is held.
func (m *Machine) next() error {
	if m.down {
		return errDown
	}
	m.step++
	if m.step == m.crashAt {
		m.down = true
		return errDown
	}
	if m.step == m.failAt {
		return errFault
	}
	return nil
}

func (m *Machine) get(key []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.keys[string(key)]; ok {
		return v, nil
	}
	return nil, errNoKey
}

func (m *Machine) scan(prefix []byte, _ bool, visit func(key, val []byte) error) error {
	m.mu.Lock()
	all := maps.Clone(m.keys)
	m.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if bytes.HasPrefix([]byte(k), prefix) {
			if err := visit([]byte(k), all[k]); err != nil {
				return err
			}
		}
	}
	return nil
}

// commit takes one step per node, so that a crash leaves some of them, and
// one for the roots together.
func (m *Machine) commit(nodes, roots []record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range nodes {
		if err := m.next(); err != nil {
			return err
		}
		m.apply(r)
	}
	if err := m.next(); err != nil {
		return err
	}
	for _, r := range roots {
		m.apply(r)
	}
	// The answer may be lost although the work was done.
	return m.next()
}

func (m *Machine) apply(r record) {
	if r.val == nil {
		delete(m.keys, string(r.key))
	} else {
		m.keys[string(r.key)] = r.val
	}
}

func (m *Machine) bytes() int64 { return 0 }
func (m *Machine) room() error  { return nil }
func (m *Machine) close() error { return nil }

// machineData is the data file of a Machine.
type machineData Machine

// dawdle widens the gap between looking a mapping up and using it.
func (d *machineData) dawdle() {
	if d.Slow && rand.IntN(4) == 0 {
		time.Sleep(time.Millisecond)
	}
}

func (d *machineData) ReadAt(p []byte, off int64) (int, error) {
	d.dawdle()
	d.mu.Lock()
	defer d.mu.Unlock()
	if (*Machine)(d).down {
		return 0, errDown
	}
	for i := 0; i < len(p); i += Unit {
		Fill(p[i:min(len(p), i+Unit)], d.units[(off+int64(i))/Unit])
	}
	return len(p), nil
}

func (d *machineData) WriteAt(p []byte, off int64) (int, error) {
	d.dawdle()
	d.mu.Lock()
	defer d.mu.Unlock()
	if off%Unit != 0 || len(p)%Unit != 0 || off+int64(len(p)) > d.size {
		panic("the test writes whole units")
	}
	for i := 0; i < len(p); i += Unit {
		if i%(16*Unit) == 0 {
			if err := (*Machine)(d).next(); err != nil {
				return 0, err
			}
		}
		(*Machine)(d).put(d.units, (off+int64(i))/Unit, Word(p[i:]))
	}
	return len(p), nil
}

func (d *machineData) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := (*Machine)(d).next(); err != nil {
		return err
	}
	d.durable = maps.Clone(d.units)
	return nil
}

func (d *machineData) Resize(size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := (*Machine)(d).next(); err != nil {
		return err
	}
	d.size = size
	return nil
}

func (d *machineData) Size() (int64, error) { return d.size, nil }

// Punch is durable at once, the worst case for a block that is still needed.
func (d *machineData) Punch(off, length int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := (*Machine)(d).next(); err != nil {
		return err
	}
	d.Punches++
	for u := off / Unit; u < (off+length)/Unit; u++ {
		delete(d.units, u)
		delete(d.durable, u)
	}
	return nil
}

func (d *machineData) NextData(off, end int64) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ; off < end; off += Unit {
		if d.units[off/Unit] != 0 {
			return off
		}
	}
	return end
}

func (d *machineData) HostFree() (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Free, nil
}
func (d *machineData) Close() error { return nil }

// Fill repeats a word all over p; Word reads it back.
func Fill(p []byte, w uint64) {
	for i := 0; i+8 <= len(p); i += 8 {
		for k := range 8 {
			p[i+k] = byte(w >> (8 * k))
		}
	}
}

func Word(p []byte) (w uint64) {
	for k := range 8 {
		w |= uint64(p[k]) << (8 * k)
	}
	return w
}
