package blockstore

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// device is a thin device in memory. The pool's lock protects it.
type device struct {
	rec   deviceRecord
	owner Owner // who has it open, or nil
	// readers counts those who have it open to read only. As long as there
	// are some, it has no owner and is not deleted.
	readers map[Owner]struct{}
	seq     uint64 // the last transaction that changed it; 0: none since the pool was opened
	lost    bool   // changes of it were lost; its next flush says so
	// quiet counts snapshots being taken of it: as long as there is one, no
	// mapping of the device is called exclusive.
	quiet int
}

// Owner is who has a device open. The pool asks it to let go of what it was
// promised; the methods return when that is done, and are called without any
// lock of the pool.
type Owner interface {
	// Settle has the owner assign all blocks that it has written, and forget
	// that any mapping of the device is exclusive, after its running writes.
	Settle(id uint32) error
	// Drop says that all mappings of the device may have changed.
	Drop(id uint32)
	// GiveBack has the owner return reserved blocks that it has not written.
	GiveBack()
}

// NewDevice says what to create.
type NewDevice struct {
	Name   string
	ID     *uint32 // nil: the next one
	Size   int64   // bytes; of a snapshot 0 means its origin's
	Of     string  // a snapshot of this device, or empty
	OfID   *uint32 // the same by id
	Origin *Origin // external origin
	Use    *Use    // what it is for; of a snapshot nil means nothing
	Nonce  string  // a creation with the nonce of an existing device has happened already
}

// checkName refuses names that could not be a file or an NBD export.
func checkName(name string) error {
	if name == "" || len(name) > 255 || name == "." || name == ".." || strings.ContainsAny(name, "/\x00\n") {
		return errs.New(errs.Usage, "device name %q: must have 1 to 255 bytes, no slash, no newline, and not be . or ..", name)
	}
	return nil
}

func (p *Pool) sortedDevices() []*device {
	out := make([]*device, 0, len(p.devs))
	for _, d := range p.devs {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b *device) int { return int(a.rec.ID) - int(b.rec.ID) })
	return out
}

// byNameLocked finds a device by its name.
func (p *Pool) byNameLocked(name string) (*device, error) {
	if id, ok := p.names[name]; ok {
		return p.devs[id], nil
	}
	return nil, errs.New(errs.NotFound, "no thin device %q in this pool: %w", name, unix.ENOENT)
}

func (p *Pool) byIDLocked(id uint32) (*device, error) {
	if d := p.devs[id]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("device %d: %w", id, errNoData)
}

// messagesLocked says why the pool takes no messages.
func (p *Pool) messagesLocked() error {
	if p.mode >= ReadOnly {
		return fmt.Errorf("%w (%w)", errReadOnly, p.cause)
	}
	return nil
}

// CreateDevice makes a device, empty or a snapshot, durably. A snapshot
// costs one reference on the root of its origin's tree, whatever its size.
func (p *Pool) CreateDevice(spec NewDevice) (DeviceInfo, error) {
	release, err := p.quiesce(spec)
	if err != nil {
		return DeviceInfo{}, err
	}
	defer release()
	p.mu.Lock()
	d, err := p.createLocked(spec)
	p.mu.Unlock()
	if err != nil {
		return DeviceInfo{}, err
	}
	if err := p.Commit(); err != nil {
		return DeviceInfo{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.infoLocked(d)
}

// quiesce stops writing in place to the origin of a snapshot, which dm-thin
// leaves to the caller, and has its owner assign what it has written, so
// that the snapshot shows every write that was answered.
func (p *Pool) quiesce(spec NewDevice) (release func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.madeLocked(spec) {
		if _, err := p.newIDLocked(spec); err != nil { // dm-thin looks at it first, too
			return func() {}, err
		}
	}
	origin, err := p.originLocked(spec)
	if origin == nil || err != nil {
		return func() {}, err
	}
	id, owner := origin.rec.ID, origin.owner
	origin.quiet++
	if owner != nil {
		p.mu.Unlock()
		err = owner.Settle(id)
		p.mu.Lock()
	}
	if err != nil {
		origin.quiet--
		return func() {}, fmt.Errorf("thin device %q: %w", origin.rec.Name, err)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if d := p.devs[id]; d == origin {
			d.quiet--
		}
	}, nil
}

// originLocked finds the device that spec is a snapshot of, or nil.
func (p *Pool) originLocked(spec NewDevice) (*device, error) {
	switch {
	case spec.OfID != nil:
		return p.byIDLocked(*spec.OfID)
	case spec.Of != "":
		return p.byNameLocked(spec.Of)
	}
	return nil, nil
}

func (p *Pool) createLocked(spec NewDevice) (*device, error) {
	if err := p.messagesLocked(); err != nil {
		return nil, err
	}
	if p.madeLocked(spec) {
		return p.devs[p.names[spec.Name]], nil
	}
	id, err := p.newIDLocked(spec)
	if err != nil {
		return nil, err
	}
	rec := deviceRecord{ID: id, Name: spec.Name, Size: spec.Size, Txid: p.sb.Txid, Origin: spec.Origin, Use: spec.Use, Nonce: spec.Nonce}
	origin, err := p.originLocked(spec)
	if err != nil {
		return nil, err
	}
	if origin != nil {
		rec.Parent = origin.rec.Name
		rec.Root, rec.Level, rec.Mapped = origin.rec.Root, origin.rec.Level, origin.rec.Mapped
		if rec.Size == 0 {
			rec.Size = origin.rec.Size
		}
		if o := origin.rec.Origin; o != nil && rec.Origin == nil {
			same := *o
			rec.Origin = &same
		}
	}
	if rec.Size < 0 || rec.Size > MaxDeviceSize {
		return nil, errs.New(errs.Usage, "device size %d: must be at most 64 TiB", rec.Size)
	}
	if err := p.minFreeLocked(); err != nil {
		return nil, err
	}
	if rec.Root != 0 {
		p.incNodeLocked(rec.Root)
	}
	d := &device{rec: rec}
	p.devs[id], p.names[rec.Name] = d, id
	p.sb.NextDevice = max(p.sb.NextDevice, id+1)
	p.touchLocked(d)
	return d, nil
}

// madeLocked reports whether this very creation has happened already.
func (p *Pool) madeLocked(spec NewDevice) bool {
	id, ok := p.names[spec.Name]
	return ok && spec.Nonce != "" && p.devs[id].rec.Nonce == spec.Nonce
}

// newIDLocked checks name and id of a device to be made, or finds an id:
// the next one that was never used, as long as there are such.
func (p *Pool) newIDLocked(spec NewDevice) (uint32, error) {
	if err := checkName(spec.Name); err != nil {
		return 0, err
	}
	if _, used := p.names[spec.Name]; used {
		return 0, errs.New(errs.Failed, "thin device %q: %w", spec.Name, unix.EEXIST)
	}
	if spec.ID != nil {
		if *spec.ID > MaxDeviceID {
			return 0, errs.New(errs.Usage, "device id %d: must be 0 to %d: %w", *spec.ID, MaxDeviceID, unix.EINVAL)
		}
		if p.devs[*spec.ID] != nil {
			return 0, errs.New(errs.Failed, "device %d: %w", *spec.ID, unix.EEXIST)
		}
		return *spec.ID, nil
	}
	if p.sb.NextDevice <= MaxDeviceID {
		return p.sb.NextDevice, nil
	}
	for id := uint32(0); id <= MaxDeviceID; id++ {
		if p.devs[id] == nil {
			return id, nil
		}
	}
	return 0, errs.New(errs.NoSpace, "the pool has all %d devices that it can have: %w", MaxDeviceID+1, unix.ENOSPC)
}

// touchLocked notes that the record of d must be committed.
func (p *Pool) touchLocked(d *device) {
	p.open.devices[d.rec.ID] = struct{}{}
	d.seq = p.open.seq
	p.dirtyLocked()
}

// DeleteDevice removes a device, which nobody may have open, and returns
// when its blocks are free.
func (p *Pool) DeleteDevice(id uint32) error {
	p.mu.Lock()
	err := p.deleteLocked(id)
	p.mu.Unlock()
	if err != nil {
		return err
	}
	if err := p.Commit(); err != nil {
		return err
	}
	p.waitReclaimed()
	return nil
}

func (p *Pool) deleteLocked(id uint32) error {
	if err := p.messagesLocked(); err != nil {
		return err
	}
	d, err := p.byIDLocked(id)
	if err != nil {
		return err
	}
	if d.owner != nil || d.quiet > 0 || len(d.readers) > 0 {
		return errs.New(errs.Busy, "thin device %q is in use: %w", d.rec.Name, unix.EBUSY)
	}
	p.touchLocked(d)
	if d.rec.Root != 0 {
		p.open.lostNodes = append(p.open.lostNodes, d.rec.Root)
	}
	delete(p.devs, id)
	delete(p.names, d.rec.Name)
	return nil
}

// ResizeDevice is SetSize followed by a commit.
func (p *Pool) ResizeDevice(id uint32, size int64, caller Owner) error {
	if err := p.SetSize(id, size, caller); err != nil {
		return err
	}
	return p.Commit()
}

// SetSize sets the virtual size of a device in bytes. Blocks beyond a
// smaller size are unmapped, so that growing again shows zeros, and an
// external origin never shows again where it was cut: a commit that comes
// between the two leaves the smaller size, and whoever grows the device then
// finds and removes what is left. Only the owner of a device that is open may
// do it.
func (p *Pool) SetSize(id uint32, size int64, caller Owner) error {
	if size < 0 || size > MaxDeviceSize {
		return errs.New(errs.Usage, "device size %d: must be at most 64 TiB", size)
	}
	old, err := p.sizeFor(id, caller)
	if err != nil || old == size {
		return err
	}
	if size > old {
		if err := p.unmapBeyond(id, old); err != nil {
			return err
		}
	}
	p.mu.Lock()
	d, err := p.changeLocked(id)
	if err == nil {
		d.rec.Size = size
		if o := d.rec.Origin; o != nil {
			o.Valid = min(o.Valid, size)
		}
		p.touchLocked(d)
	}
	p.mu.Unlock()
	if err != nil || size > old {
		return err
	}
	return p.unmapBeyond(id, size)
}

// sizeFor returns the size of a device that caller is about to change.
func (p *Pool) sizeFor(id uint32, caller Owner) (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := p.byIDLocked(id)
	if err != nil {
		return 0, err
	}
	if err := p.messagesLocked(); err != nil {
		return 0, err
	}
	if d.owner != nil && d.owner != caller || len(d.readers) > 0 {
		return 0, errs.New(errs.Busy, "thin device %q is in use: %w", d.rec.Name, unix.EBUSY)
	}
	return d.rec.Size, nil
}

func (p *Pool) unmapBeyond(id uint32, size int64) error {
	from := uint64((size + p.blockSize - 1) / p.blockSize)
	return p.Unmap(id, from, MaxDeviceSize/uint64(p.blockSize)-from)
}

// SetState notes how far the making or removal of the file has come that the
// device called name is of; key must be that of its Use. It is durable with
// the next commit.
func (p *Pool) SetState(name, key, state string) error {
	return p.changeRecord(name, func(rec *deviceRecord) error {
		if rec.Use == nil || rec.Use.Key != key {
			return errs.New(errs.Failed, "thin device %q is of another file: %w", name, unix.ESTALE)
		}
		use := *rec.Use
		use.State = state
		rec.Use = &use
		return nil
	})
}

// SetOrigin says where the external origin of the device called name is now,
// durably. How far it is valid stays as it is.
func (p *Pool) SetOrigin(name string, o Origin) error {
	err := p.changeRecord(name, func(rec *deviceRecord) error {
		if rec.Origin == nil {
			return errs.New(errs.Usage, "thin device %q has no external origin", name)
		}
		o.Valid = rec.Origin.Valid
		rec.Origin = &o
		return nil
	})
	if err != nil {
		return err
	}
	return p.Commit()
}

func (p *Pool) changeRecord(name string, change func(*deviceRecord) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.messagesLocked(); err != nil {
		return err
	}
	d, err := p.byNameLocked(name)
	if err != nil {
		return err
	}
	if err := change(&d.rec); err != nil {
		return err
	}
	p.touchLocked(d)
	return nil
}

// usableLocked finds a device that somebody may take. Precondition: mu is held.
func (p *Pool) usableLocked(name string) (*device, error) {
	if err := p.failedLocked(); err != nil {
		return nil, err
	}
	d, err := p.byNameLocked(name)
	if err == nil && p.sb.Exported {
		err = p.cause
	}
	return d, err
}

// Acquire gives a device to an owner; EBUSY when it has one.
func (p *Pool) Acquire(name string, owner Owner) (DeviceInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := p.usableLocked(name)
	if err != nil {
		return DeviceInfo{}, err
	}
	if d.owner != nil && d.owner != owner || len(d.readers) > 0 {
		return DeviceInfo{}, errs.New(errs.Busy, "thin device %q is in use: %w", d.rec.Name, unix.EBUSY)
	}
	d.owner = owner
	return p.infoLocked(d)
}

// AcquireToRead lets reader read a device that nobody can change meanwhile;
// EBUSY when somebody may.
func (p *Pool) AcquireToRead(name string, reader Owner) (DeviceInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := p.usableLocked(name)
	if err != nil {
		return DeviceInfo{}, err
	}
	if d.owner != nil {
		return DeviceInfo{}, errs.New(errs.Busy, "thin device %q is in use: %w", d.rec.Name, unix.EBUSY)
	}
	if d.readers == nil {
		d.readers = map[Owner]struct{}{}
	}
	d.readers[reader] = struct{}{}
	return p.infoLocked(d)
}

// Release ends what Acquire or AcquireToRead began.
func (p *Pool) Release(id uint32, owner Owner) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.devs[id]
	if d == nil {
		return
	}
	if d.owner == owner {
		d.owner = nil
	}
	delete(d.readers, owner)
}

// NameOf returns what the device with the id is called, or nothing when it
// has been deleted.
func (p *Pool) NameOf(id uint32) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.devs[id]; d != nil {
		return d.rec.Name
	}
	return ""
}

// Device returns what is known of a device, by name.
func (p *Pool) Device(name string) (DeviceInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := p.byNameLocked(name)
	if err != nil {
		return DeviceInfo{}, err
	}
	return p.usageLocked(d)
}

// Info is Device without the exclusive blocks, which it takes a walk to count.
func (p *Pool) Info(name string) (DeviceInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := p.byNameLocked(name)
	if err != nil {
		return DeviceInfo{}, err
	}
	return p.infoLocked(d)
}

// Devices returns all devices by id.
func (p *Pool) Devices() ([]DeviceInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]DeviceInfo, 0, len(p.devs))
	for _, d := range p.sortedDevices() {
		info, err := p.usageLocked(d)
		if err != nil {
			return nil, err
		}
		out = append(out, info)
	}
	return out, nil
}

func (p *Pool) infoLocked(d *device) (DeviceInfo, error) {
	info := DeviceInfo{ID: d.rec.ID, Name: d.rec.Name, Size: d.rec.Size, Mapped: d.rec.Mapped,
		Parent: d.rec.Parent, Txid: d.rec.Txid, Active: d.owner != nil || len(d.readers) > 0}
	if d.rec.Origin != nil {
		o := *d.rec.Origin
		info.Origin = &o
	}
	if d.rec.Use != nil {
		u := *d.rec.Use
		info.Use = &u
	}
	var err error
	if info.Highest, err = p.highestLocked(d); err != nil {
		return info, p.metadataErrorLocked(err)
	}
	return info, nil
}

// usageLocked is infoLocked with the exclusive blocks, which takes a walk
// over the part of the tree that no snapshot shares.
func (p *Pool) usageLocked(d *device) (DeviceInfo, error) {
	info, err := p.infoLocked(d)
	if err != nil {
		return info, err
	}
	if info.Exclusive, err = p.exclusiveLocked(d.rec.Root); err != nil {
		return info, p.metadataErrorLocked(err)
	}
	return info, nil
}
