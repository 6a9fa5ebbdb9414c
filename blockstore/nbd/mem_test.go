package nbd

import (
	"fmt"
	"io"
	"maps"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/internal/errs"
)

const memBlock = 64 << 10

// mem is an export in memory: what was never written takes none.
type mem struct {
	size int64

	// hook, if not nil, runs before each operation and may block or fail.
	hook func(op string, off, length int64) error

	mu      sync.RWMutex // of hook too
	blocks  map[int64][]byte
	counts  map[string]int
	changes int // writes, zeroes and discards that have ended
	durable int // changes that a Flush has covered
	closed  bool
}

func newMem(size int64) *mem {
	return &mem{size: size, blocks: map[int64][]byte{}, counts: map[string]int{}}
}

func (m *mem) begin(op string, off, length int64) error {
	m.mu.Lock()
	m.counts[op]++
	closed, hook := m.closed, m.hook
	m.mu.Unlock()
	if closed {
		return fmt.Errorf("%s after close", op)
	}
	if op != "flush" && (off < 0 || length <= 0 || off+length > m.size) {
		return fmt.Errorf("%s of %d bytes at %d leaves the device", op, length, off)
	}
	if hook != nil {
		return hook(op, off, length)
	}
	return nil
}

func (m *mem) setHook(hook func(op string, off, length int64) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = hook
}

func (m *mem) count(op string) int { return m.ops()[op] }

// ops returns how often each operation was called.
func (m *mem) ops() map[string]int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return maps.Clone(m.counts)
}

// state returns the changes and how many of them are durable.
func (m *mem) state() (changes, durable int) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.changes, m.durable
}

func (m *mem) Size() int64    { return m.size }
func (m *mem) BlockSize() int { return memBlock }

// each calls f for the part of the range in each block.
func each(off, length int64, f func(block, from, to, done int64)) {
	for done := int64(0); done < length; {
		block, from := (off+done)/memBlock, (off+done)%memBlock
		to := min(memBlock, from+length-done)
		f(block, from, to, done)
		done += to - from
	}
}

func (m *mem) ReadAt(p []byte, off int64) (int, error) {
	if err := m.begin("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	m.peek(p, off)
	if off+int64(len(p)) == m.size {
		return len(p), io.EOF // as io.ReaderAt may
	}
	return len(p), nil
}

// peek is ReadAt of a test, which may look at a closed device.
func (m *mem) peek(p []byte, off int64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	clear(p)
	each(off, int64(len(p)), func(block, from, to, done int64) {
		if b := m.blocks[block]; b != nil {
			copy(p[done:], b[from:to])
		}
	})
}

func (m *mem) WriteAt(p []byte, off int64) (int, error) {
	if err := m.begin("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	m.poke(p, off)
	return len(p), nil
}

// poke is WriteAt of a test.
func (m *mem) poke(p []byte, off int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes++
	each(off, int64(len(p)), func(block, from, to, done int64) {
		if m.blocks[block] == nil {
			m.blocks[block] = make([]byte, memBlock)
		}
		copy(m.blocks[block][from:to], p[done:])
	})
}

func (m *mem) Discard(off, length int64) error {
	if err := m.begin("discard", off, length); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes++
	each(off, length, func(block, from, to, _ int64) {
		if to-from == memBlock {
			delete(m.blocks, block)
		}
	})
	return nil
}

func (m *mem) Zero(off, length int64, mayUnmap bool) error {
	op := "zero"
	if mayUnmap {
		op = "unmap"
	}
	if err := m.begin(op, off, length); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes++
	each(off, length, func(block, from, to, _ int64) {
		switch {
		case mayUnmap && to-from == memBlock:
			delete(m.blocks, block)
		case m.blocks[block] != nil:
			clear(m.blocks[block][from:to])
		case !mayUnmap:
			m.blocks[block] = make([]byte, memBlock)
		}
	})
	return nil
}

func (m *mem) Flush() error {
	if err := m.begin("flush", 0, 0); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable = m.changes
	return nil
}

func (m *mem) Extents(off, length int64) ([]Extent, error) {
	if err := m.begin("extents", off, length); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	var list []Extent
	each(off, length, func(block, from, to, _ int64) {
		list = append(list, Extent{to - from, m.blocks[block] != nil})
	})
	return list, nil
}

func (m *mem) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts["close"]++
	m.closed = true
	return nil
}

// store is some exports.
type store struct {
	mu    sync.Mutex
	names []string
	devs  map[string]*mem
	fail  map[string]error // of Open
	opens map[string]int
}

func newStore(devs map[string]*mem, names ...string) *store {
	return &store{names: names, devs: devs, fail: map[string]error{}, opens: map[string]int{}}
}

// single is a store of one export of 16 MiB.
func single() (*store, *mem) {
	m := newMem(16 << 20)
	return newStore(map[string]*mem{"disk": m}, "disk"), m
}

func (s *store) List() ([]string, error) { return s.names, s.fail["list"] }

func (s *store) Open(name string) (Export, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fail[name]; err != nil {
		return nil, err
	}
	m := s.devs[name]
	if m == nil {
		return nil, errs.New(errs.NotFound, "no device %q", name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.opens[name] > 0 && !m.closed {
		return nil, fmt.Errorf("device %q opened twice: %w", name, syscall.EBUSY)
	}
	m.closed = false
	s.opens[name]++
	return m, nil
}

func (s *store) opened(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opens[name]
}

func TestMem(t *testing.T) {
	m := newMem(3*memBlock + 100)
	_, err := m.WriteAt([]byte("hello"), memBlock-2)
	require.NoError(t, err)
	p := make([]byte, 7)
	_, err = m.ReadAt(p, memBlock-3)
	require.NoError(t, err)
	require.Equal(t, "\x00hello\x00", string(p))
	list, err := m.Extents(10, m.size-10)
	require.NoError(t, err)
	require.Equal(t, []Extent{{memBlock - 10, true}, {memBlock, true}, {memBlock, false}, {100, false}}, list)
}
