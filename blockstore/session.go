package blockstore

import (
	"context"
	"sync"

	"github.com/layerfs/layerfs/internal/errs"
)

// Session is one user of a pool: the owner of the devices it has open and of
// the blocks it has reserved. volume.Volume works on it, in this process or,
// through a server, in another.
type Session struct {
	p    *Pool
	hook Owner // who is asked to settle, drop and give back

	mu  sync.Mutex
	ids map[uint32]bool // the devices it has open; true for those it may change
}

// NewSession starts a session whose promises hook gives up when asked.
func (p *Pool) NewSession(hook Owner) *Session {
	return &Session{p: p, hook: hook, ids: map[uint32]bool{}}
}

// Settle, Drop and GiveBack make a session the Owner of its devices.
func (s *Session) Settle(id uint32) error { return s.hook.Settle(id) }
func (s *Session) Drop(id uint32)         { s.hook.Drop(id) }
func (s *Session) GiveBack()              { s.hook.GiveBack() }

// Open acquires a device.
func (s *Session) Open(name string) (DeviceInfo, error) {
	return s.acquire(name, true, s.p.Acquire)
}

// OpenToRead acquires a device to read it only.
func (s *Session) OpenToRead(name string) (DeviceInfo, error) {
	return s.acquire(name, false, s.p.AcquireToRead)
}

func (s *Session) acquire(name string, writes bool, how func(string, Owner) (DeviceInfo, error)) (DeviceInfo, error) {
	info, err := how(name, s)
	if err != nil {
		return info, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids[info.ID] = writes
	return info, nil
}

// Release lets go of a device.
func (s *Session) Release(id uint32) {
	s.mu.Lock()
	delete(s.ids, id)
	s.mu.Unlock()
	s.p.Release(id, s)
}

// Close lets go of everything.
func (s *Session) Close() {
	s.mu.Lock()
	ids := make([]uint32, 0, len(s.ids))
	for id := range s.ids {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.Release(id)
	}
	s.p.ReturnAll(s)
}

func (s *Session) opened(id uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ids[id] {
		return errs.New(errs.Failed, "device %d is not open for writing in this session", id)
	}
	return nil
}

// Leaf is Pool.Leaf.
func (s *Session) Leaf(id uint32, leaf uint64) (*LeafMap, error) { return s.p.Leaf(id, leaf) }

// Freed is Pool.Freed.
func (s *Session) Freed() uint64 { return s.p.Freed() }

// Reserve is Pool.Reserve.
func (s *Session) Reserve(ctx context.Context, n int) ([]Grant, error) { return s.p.Reserve(ctx, s, n) }

// Return is Pool.Return.
func (s *Session) Return(blocks []uint64) { s.p.Return(s, blocks) }

// Adopt is Pool.Adopt for assignments that a former pool process may or may
// not have made durable: those it has are left out of the result.
func (s *Session) Adopt(id uint32, list []Assignment) ([]Assignment, error) {
	var missing []Assignment
	var blocks []uint64
	for _, a := range list {
		leaf, err := s.p.Leaf(id, a.Virtual/LeafBlocks)
		if err != nil {
			return nil, err
		}
		if m := leaf.Entries[a.Virtual%LeafBlocks]; m.HasData() && m.Block() == a.Data {
			continue
		}
		missing, blocks = append(missing, a), append(blocks, a.Data)
	}
	return missing, s.p.Adopt(s, blocks)
}

// AdoptBlocks takes over blocks that were reserved and not yet assigned.
func (s *Session) AdoptBlocks(blocks []uint64) error { return s.p.Adopt(s, blocks) }

// Assign is Pool.Assign on an open device.
func (s *Session) Assign(id uint32, list []Assignment) error {
	if err := s.opened(id); err != nil {
		return err
	}
	return s.p.Assign(id, s, list)
}

// Unmap is Pool.Unmap on an open device.
func (s *Session) Unmap(id uint32, from, count uint64) error {
	return s.change(id, from, count, s.p.Unmap)
}

// SetZero is Pool.SetZero on an open device.
func (s *Session) SetZero(id uint32, from, count uint64) error {
	return s.change(id, from, count, s.p.SetZero)
}

func (s *Session) change(id uint32, from, count uint64, how func(uint32, uint64, uint64) error) error {
	if err := s.opened(id); err != nil {
		return err
	}
	return how(id, from, count)
}

// Resize is Pool.SetSize on an open device.
func (s *Session) Resize(id uint32, size int64) error {
	if err := s.opened(id); err != nil {
		return err
	}
	return s.p.SetSize(id, size, s)
}

// Flush assigns list and returns when all changes of the device, and all
// data written before, are durable. A commit takes place only if the device
// changed since the last (bio_triggers_commit in dm-thin.c).
func (s *Session) Flush(id uint32, list []Assignment) error {
	if len(list) > 0 {
		if err := s.Assign(id, list); err != nil {
			return err
		}
	}
	seq, err := s.p.Changed(id)
	if err != nil {
		return err
	}
	return s.p.Flush(seq)
}

// Seq is the last transaction that changed the device. It is never 0: what
// has not changed since the pool was opened is durable with any.
func (s *Session) Seq(id uint32) uint64 { return max(1, s.p.Seq(id)) }

// Data is the pool's data file.
func (s *Session) Data() DataFile { return s.p.data }
