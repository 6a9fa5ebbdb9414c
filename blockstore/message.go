package blockstore

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// messages are dm-thin's, with the number of their arguments.
var messages = map[string]struct {
	args int
	run  func(p *Pool, args []uint64) error
}{
	"create_thin":           {1, (*Pool).messageCreate},
	"create_snap":           {2, (*Pool).messageSnap},
	"delete":                {1, func(p *Pool, a []uint64) error { return p.messageDelete(a) }},
	"set_transaction_id":    {2, func(p *Pool, a []uint64) error { return p.SetTransactionID(a[0], a[1]) }},
	"reserve_metadata_snap": {0, func(p *Pool, _ []uint64) error { return p.Hold() }},
	"release_metadata_snap": {0, func(p *Pool, _ []uint64) error { return p.Unhold() }},
}

// Message carries out a message of the thin-pool target, word for word
// (pool_message in dm-thin.c). The error wraps the errno that the kernel
// would give.
func (p *Pool) Message(text string) error {
	words := strings.Fields(text)
	if len(words) == 0 {
		return errs.New(errs.Usage, "empty message: %w", unix.EINVAL)
	}
	p.mu.Lock()
	err := p.messagesLocked()
	p.mu.Unlock()
	if err != nil {
		return err
	}
	m, ok := messages[words[0]]
	if !ok {
		return errs.New(errs.Usage, "Unrecognised thin pool target message received: %s: %w", words[0], unix.EINVAL)
	}
	if len(words)-1 != m.args {
		return errs.New(errs.Usage, "Message received with %d arguments instead of %d: %w", len(words), m.args+1, unix.EINVAL)
	}
	var args []uint64
	for _, w := range words[1:] {
		v, err := strconv.ParseUint(w, 10, 64)
		if err != nil {
			return errs.New(errs.Usage, "Message received with invalid argument %q: %w", w, unix.EINVAL)
		}
		args = append(args, v)
	}
	return m.run(p, args)
}

func deviceID(v uint64) (*uint32, error) {
	if v > MaxDeviceID {
		return nil, errs.New(errs.Usage, "Message received with invalid device id: %d: %w", v, unix.EINVAL)
	}
	id := uint32(v)
	return &id, nil
}

// ThinName is what a device is called that was made without a name.
func ThinName(id uint32) string { return fmt.Sprintf("thin-%d", id) }

func (p *Pool) messageCreate(args []uint64) error {
	id, err := deviceID(args[0])
	if err == nil {
		_, err = p.CreateDevice(NewDevice{ID: id, Name: ThinName(*id)})
	}
	return err
}

func (p *Pool) messageSnap(args []uint64) error {
	id, err := deviceID(args[0])
	if err != nil {
		return err
	}
	of, err := deviceID(args[1])
	if err == nil {
		_, err = p.CreateDevice(NewDevice{ID: id, Name: ThinName(*id), OfID: of})
	}
	return err
}

func (p *Pool) messageDelete(args []uint64) error {
	id, err := deviceID(args[0])
	if err != nil {
		return err
	}
	return p.DeleteDevice(*id)
}

// SetTransactionID changes the users' transaction id from one value to
// another, EINVAL when it has a third.
func (p *Pool) SetTransactionID(from, to uint64) error {
	p.mu.Lock()
	if p.sb.Txid != from {
		p.mu.Unlock()
		return errs.New(errs.Failed, "the transaction id is %d, not %d: %w", p.sb.Txid, from, unix.EINVAL)
	}
	p.sb.Txid = to
	p.dirtyLocked()
	p.mu.Unlock()
	return p.Commit()
}

// Hold takes the metadata snapshot: the devices as they are now can be read
// by Held until Unhold, while the pool goes on. EBUSY when there is one.
func (p *Pool) Hold() error {
	if err := p.SettleAll(); err != nil {
		return err
	}
	// With nothing uncommitted every node is immutable from here on.
	for {
		if err := p.Commit(); err != nil {
			return err
		}
		p.mu.Lock()
		if !p.open.dirty {
			break
		}
		p.mu.Unlock()
	}
	if p.sb.Held != nil {
		p.mu.Unlock()
		return errs.New(errs.Busy, "the pool has a metadata snapshot: %w", unix.EBUSY)
	}
	h := &heldSet{NextNode: p.sb.NextNode, Txid: p.sb.Txid}
	pins := &pins{nextNode: h.NextNode}
	for _, d := range p.sortedDevices() {
		h.Devices = append(h.Devices, d.rec)
	}
	for b := uint64(0); b < p.refs.n; b++ {
		if p.refs.chunks[b/chunkBlocks] == nil {
			b += chunkBlocks - 1 - b%chunkBlocks
		} else if _, reserved := p.reserved[b]; p.refs.count(b) > 0 && !reserved {
			pins.blocks.add(b)
		}
	}
	p.sb.Held, p.pins = h, pins
	p.dirtyLocked()
	p.mu.Unlock()
	return p.Commit()
}

// Unhold lets the metadata snapshot go; EINVAL without one.
func (p *Pool) Unhold() error {
	p.mu.Lock()
	if p.sb.Held == nil {
		p.mu.Unlock()
		return errs.New(errs.Failed, "the pool has no metadata snapshot: %w", unix.EINVAL)
	}
	p.sb.Held = nil
	p.dirtyLocked()
	p.mu.Unlock()
	if err := p.Commit(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pins := p.pins
	if pins == nil || p.sb.Held != nil {
		return nil
	}
	p.pins = nil
	for _, b := range pins.lostBlocks {
		p.dropBlockLocked(b)
	}
	p.trash = append(p.trash, pins.lostNodes...)
	p.freed++
	p.spaceChangedLocked()
	p.broadcastLocked()
	return nil
}
