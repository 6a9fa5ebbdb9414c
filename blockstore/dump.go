package blockstore

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore/thinxml"
	"github.com/layerfs/layerfs/internal/errs"
)

// Sidecar is what thin_dump's XML has no place for. It is written beside the
// data file, as data.json.
type Sidecar struct {
	UUID    string          `json:"uuid"`
	Options Options         `json:"options"`
	Devices []SidecarDevice `json:"devices"`
}

// SidecarDevice names a device.
type SidecarDevice struct {
	ID     uint32  `json:"dev_id"`
	Name   string  `json:"name"`
	Size   int64   `json:"size"` // bytes
	Parent string  `json:"parent,omitempty"`
	Origin *Origin `json:"origin,omitempty"`
}

// Times of an exported pool. dm-thin takes a block for shared when its
// device was part of a snapshot after the block was mapped: with every
// device at time 1, blocks of time 0 are shared and those of time 1 are not.
const (
	sharedTime    = 0
	exclusiveTime = 1
)

// Dump writes the pool as thin_dump does. With the same data file, the
// metadata that thin_restore makes of it is a dm-thin pool. All that was
// assigned is in it; owners have settled.
func (p *Pool) Dump(w io.Writer) (*Sidecar, error) {
	if err := p.commitForDump(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out, err := thinxml.NewWriter(w, thinxml.Superblock{Time: exclusiveTime, Transaction: p.sb.Txid,
		Version: thinxml.Version, DataBlockSize: uint32(p.blockSize / SectorSize), DataBlocks: p.sb.Blocks})
	if err != nil {
		return nil, err
	}
	side := &Sidecar{UUID: p.sb.UUID, Options: p.sb.Options}
	for _, d := range p.sortedDevices() {
		if err := p.dumpDevice(out, d); err != nil {
			return nil, fmt.Errorf("device %q: %w", d.rec.Name, err)
		}
		side.Devices = append(side.Devices, SidecarDevice{d.rec.ID, d.rec.Name, d.rec.Size, d.rec.Parent, d.rec.Origin})
	}
	return side, out.Close()
}

// commitForDump commits what can be committed; a read-only pool shows what
// it has.
func (p *Pool) commitForDump() error {
	p.mu.Lock()
	mode := p.mode
	p.mu.Unlock()
	switch mode {
	case Failed:
		return errFailed
	case ReadOnly:
		return nil
	}
	return p.Commit()
}

func (p *Pool) dumpDevice(out *thinxml.Writer, d *device) error {
	err := out.Device(thinxml.Device{ID: d.rec.ID, MappedBlocks: d.rec.Mapped, Transaction: d.rec.Txid, SnapTime: exclusiveTime})
	if err != nil {
		return err
	}
	if d.rec.Root == 0 {
		return nil
	}
	return p.dumpNode(out, d.rec.Root, 0, false, d.rec.Origin != nil)
}

// dumpNode writes what is below node id, which starts at leaf base.
func (p *Pool) dumpNode(out *thinxml.Writer, id, base uint64, shared, origin bool) error {
	n, err := p.nodeLocked(id)
	if err != nil {
		return err
	}
	shared = shared || p.nodeSharedLocked(id)
	for i, e := range n.e {
		switch {
		case e == 0:
		case n.level > 0:
			err = p.dumpNode(out, e, base+uint64(i)*leaves(n.level-1), shared, origin)
		case entryBlock(e) != zeroBlock:
			t := uint32(exclusiveTime)
			if shared || p.refs.count(entryBlock(e)) != 1 {
				t = sharedTime
			}
			err = out.Map(thinxml.Range{Origin: base*fanout + uint64(i), Data: entryBlock(e), Length: 1, Time: t})
		case origin:
			err = errs.New(errs.Unsupported, "virtual block %d is zeroed over the external origin, which dm-thin cannot express", base*fanout+uint64(i))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// SetExported marks the pool as handed to dm-thin, which may change the data
// file and moves blocks as it likes: the pool answers no writes until it is
// restored. No device may be open.
func (p *Pool) SetExported() error {
	p.mu.Lock()
	err := p.exportableLocked()
	if err == nil {
		p.sb.Exported = true
		p.dirtyLocked()
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	if err := p.Commit(); err != nil {
		return err
	}
	p.mu.Lock()
	p.setModeLocked(p.loadedMode())
	p.mu.Unlock()
	p.wait(func() bool { return p.punching[1] == 0 })
	return nil
}

func (p *Pool) exportableLocked() error {
	if err := p.messagesLocked(); err != nil {
		return err
	}
	for _, d := range p.devs {
		if d.owner != nil {
			return errs.New(errs.Busy, "thin device %q is in use: %w", d.rec.Name, unix.EBUSY)
		}
	}
	return nil
}

// Unexport takes the mark away from a pool whose metadata nobody was given.
func (p *Pool) Unexport() error {
	p.mu.Lock()
	p.sb.Exported = false
	p.setModeLocked(p.loadedMode())
	p.dirtyLocked()
	p.mu.Unlock()
	return p.Commit()
}

// Difference is a stretch of two devices.
type Difference struct {
	Kind   string `json:"kind"`   // same, left_only, right_only or different, as thin_delta says
	Begin  uint64 `json:"begin"`  // virtual block
	Length uint64 `json:"length"` // blocks
}

// Delta compares the mappings of two devices, as thin_delta does. What both
// share is told from the trees alone, however much it is.
func (p *Pool) Delta(left, right string) ([]Difference, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, err := p.byNameLocked(left)
	if err != nil {
		return nil, err
	}
	r, err := p.byNameLocked(right)
	if err != nil {
		return nil, err
	}
	var out []Difference
	add := func(kind string, v uint64) {
		if k := len(out) - 1; k >= 0 && out[k].Kind == kind && out[k].Begin+out[k].Length == v {
			out[k].Length++
		} else {
			out = append(out, Difference{kind, v, 1})
		}
	}
	last := max(leaves(l.rec.Level), leaves(r.rec.Level))
	for leaf := uint64(0); leaf < last; leaf++ {
		a, at, err := p.nextLeafLocked(l, leaf)
		if err != nil {
			return nil, err
		}
		b, bt, err := p.nextLeafLocked(r, leaf)
		if err != nil {
			return nil, err
		}
		if a == nil && b == nil {
			break
		}
		if a == nil || b != nil && bt < at {
			a, at = nil, bt
		} else if b == nil || at < bt {
			b = nil
		}
		leaf = at
		compareLeaves(a, b, leaf*fanout, add)
	}
	return out, nil
}

// compareLeaves compares two leaves that start at virtual block base; nil is
// an empty one.
func compareLeaves(a, b *node, base uint64, add func(kind string, v uint64)) {
	var none node
	if a == nil {
		a = &none
	}
	if b == nil {
		b = &none
	}
	for i := range a.e {
		x, y := a.e[i], b.e[i]
		switch {
		case x == 0 && y == 0:
		case y == 0:
			add("left_only", base+uint64(i))
		case x == 0:
			add("right_only", base+uint64(i))
		case entryBlock(x) == entryBlock(y):
			add("same", base+uint64(i))
		default:
			add("different", base+uint64(i))
		}
	}
}
