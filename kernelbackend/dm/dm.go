// Package dm has the kernel's dm-thin at work: pools and thin devices by ioctl, as
// libdm would, without udev's or LVM's help.
//
// Names are device-mapper's. A device is there from Create to Remove; its node is
// /dev/dm-N, which the kernel makes by itself. Tables name devices by their numbers
// (MAJOR:MINOR), because nobody may have made the links of /dev/mapper.
package dm

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// Sector is the unit of device-mapper, in bytes.
const Sector = 512

// Mapper is device-mapper's control node. It may be used by several goroutines.
type Mapper struct{ fd int }

// Open opens it.
func Open() (*Mapper, error) {
	fd, err := sys.OpenMapper()
	switch err {
	case nil:
		return &Mapper{fd}, nil
	case unix.ENODEV, unix.ENXIO, unix.ENOENT:
		return nil, errs.New(errs.Unsupported, "the kernel has no device-mapper (modprobe dm_mod)")
	case unix.EACCES, unix.EPERM:
		return nil, errs.New(errs.Unsupported, "/dev/mapper/control: %w: that takes root", err)
	}
	return nil, fmt.Errorf("/dev/mapper/control: %w", err)
}

// Close closes the node; devices stay.
func (m *Mapper) Close() error { return sys.Close(m.fd) }

// Device is a device that is there.
type Device struct {
	Dev       uint64 // its number
	OpenCount int
	Suspended bool
	Live      bool // it has a table: Create has come to its end
}

// Path is the device's node.
func (d Device) Path() string { return fmt.Sprintf("/dev/dm-%d", unix.Minor(d.Dev)) }

// Number is the device in tables.
func (d Device) Number() string { return fmt.Sprintf("%d:%d", unix.Major(d.Dev), unix.Minor(d.Dev)) }

func (m *Mapper) call(command int, name string, flags uint32, targets []sys.MapperTarget, message string) (sys.MapperReply, error) {
	r, err := sys.Mapper(m.fd, command, name, flags, targets, message)
	if err != nil {
		return r, fmt.Errorf("device-mapper, device %s: %w", name, err)
	}
	return r, nil
}

// Lookup returns the device name; ok is false when there is none.
func (m *Mapper) Lookup(name string) (d Device, ok bool, err error) {
	r, err := m.call(sys.MapperInfo, name, 0, nil, "")
	if sys.NoDevice(err) {
		return d, false, nil
	}
	return Device{r.Dev, int(r.OpenCount), r.Flags&sys.MapperSuspended != 0, r.Flags&sys.MapperLive != 0}, err == nil, err
}

// Whole is Lookup for a device of ours that nobody else may be making now: one without a
// table, whose maker has died, is removed and so not there.
func (m *Mapper) Whole(name string) (d Device, ok bool, err error) {
	d, ok, err = m.Lookup(name)
	if err == nil && ok && !d.Live {
		return Device{}, false, m.Remove(name, false)
	}
	return d, ok, err
}

// Names returns the names of all devices.
func (m *Mapper) Names() ([]string, error) {
	r, err := m.call(sys.MapperList, "", 0, nil, "")
	return r.Names, err
}

// Create makes a device with one target of size bytes. One that is there by that name is
// an error, EBUSY.
func (m *Mapper) Create(name, target, params string, size int64, readOnly bool) (Device, error) {
	if _, err := m.call(sys.MapperCreate, name, 0, nil, ""); err != nil {
		return Device{}, err
	}
	err := m.load(name, target, params, size, readOnly)
	if err == nil {
		err = m.Resume(name)
	}
	if err != nil {
		_ = m.Remove(name, false) // nobody has seen it
		return Device{}, err
	}
	d, _, err := m.Lookup(name)
	return d, err
}

func (m *Mapper) load(name, target, params string, size int64, readOnly bool) error {
	flags := uint32(0)
	if readOnly {
		flags = sys.MapperReadOnly
	}
	_, err := m.call(sys.MapperLoad, name, flags, []sys.MapperTarget{{Length: uint64(size / Sector), Type: target, Params: params}}, "")
	return err
}

// Reload gives a device another table.
func (m *Mapper) Reload(name, target, params string, size int64) error {
	if err := m.load(name, target, params, size, false); err != nil {
		return err
	}
	if err := m.Suspend(name); err != nil {
		return err
	}
	return m.Resume(name)
}

// Suspend holds all requests to a device back, after its file system is on the disk, and
// Resume lets them go on.
func (m *Mapper) Suspend(name string) error {
	_, err := m.call(sys.MapperSuspend, name, sys.MapperSuspended, nil, "")
	return err
}

// Resume ends Suspend.
func (m *Mapper) Resume(name string) error {
	_, err := m.call(sys.MapperSuspend, name, 0, nil, "")
	return err
}

// removeTries and removePause bound how long a device may be in use when it is removed:
// udev looks into every new one.
const (
	removeTries = 100
	removePause = 100 * time.Millisecond
)

// Remove removes a device; one that is not there is no error. One in use is tried again
// for a while, then Busy; deferred has the kernel remove it when it is let go.
func (m *Mapper) Remove(name string, deferred bool) error {
	flags := uint32(0)
	if deferred {
		flags = sys.MapperDeferred
	}
	for try := 0; ; try++ {
		_, err := m.call(sys.MapperRemove, name, flags, nil, "")
		if err == nil || sys.NoDevice(err) {
			return nil
		}
		if errs.Of(err) != errs.Busy || try == removeTries {
			return err
		}
		time.Sleep(removePause)
	}
}

// Status returns the status line of a device, without what `dmsetup status` puts before
// it; Table its table. noFlush keeps a pool from committing for it.
func (m *Mapper) Status(name string, noFlush bool) (target, line string, size int64, err error) {
	flags := uint32(0)
	if noFlush {
		flags = sys.MapperNoFlush
	}
	return m.lines(name, flags)
}

// Table returns the target of a device, its parameters and its size in bytes.
func (m *Mapper) Table(name string) (target, params string, size int64, err error) {
	return m.lines(name, sys.MapperTable)
}

func (m *Mapper) lines(name string, flags uint32) (target, line string, size int64, err error) {
	r, err := m.call(sys.MapperStatus, name, flags, nil, "")
	if err != nil {
		return "", "", 0, err
	}
	if len(r.Targets) != 1 {
		return "", "", 0, errs.New(errs.Corrupt, "device-mapper, device %s: it has %d targets, where one is expected", name, len(r.Targets))
	}
	t := r.Targets[0]
	return t.Type, t.Params, int64(t.Length) * Sector, nil
}

// Message gives a pool a message, in the kernel's words.
func (m *Mapper) Message(pool, text string) error {
	if _, err := sys.Mapper(m.fd, sys.MapperMessage, pool, 0, nil, text); err != nil {
		return fmt.Errorf("pool %s, message %q: %w", pool, text, err)
	}
	return nil
}

// PoolStatus is the status line of a pool (thin-provisioning.rst).
type PoolStatus struct {
	Txid                    uint64
	MetaUsed, MetaTotal     int64  // blocks of 4 KiB
	DataUsed, DataTotal     int64  // blocks of the pool
	Mode                    string // rw, ro, out_of_data_space, Fail, Error
	ErrorNoSpace, NeedCheck bool
}

// Pool returns how a pool is.
func (m *Mapper) Pool(name string) (s PoolStatus, err error) {
	target, line, _, err := m.Status(name, false)
	if err != nil {
		return s, err
	}
	if target != "thin-pool" {
		return s, errs.New(errs.Usage, "device %s is no thin pool but %q", name, target)
	}
	return ParsePool(line)
}

// ParsePool reads the status line of a thin-pool target.
func ParsePool(line string) (s PoolStatus, err error) {
	f := strings.Fields(line)
	if len(f) == 1 { // Fail, Error
		return PoolStatus{Mode: f[0]}, nil
	}
	bad := errs.New(errs.Corrupt, "the status of a pool that makes no sense: %q", line)
	if len(f) < 5 {
		return s, bad
	}
	if s.Txid, err = strconv.ParseUint(f[0], 10, 64); err != nil {
		return s, bad
	}
	for i, to := range [][2]*int64{{&s.MetaUsed, &s.MetaTotal}, {&s.DataUsed, &s.DataTotal}} {
		if _, err := fmt.Sscanf(f[1+i], "%d/%d", to[0], to[1]); err != nil {
			return s, bad
		}
	}
	for _, word := range f[4:] {
		switch word {
		case "rw", "ro", "out_of_data_space":
			s.Mode = word
		case "error_if_no_space":
			s.ErrorNoSpace = true
		case "needs_check":
			s.NeedCheck = true
		}
	}
	return s, nil
}
