package devicemapper

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/kernelbackend/dm"
	"github.com/layerfs/layerfs/layers/driver"
)

// state says what is being done to a device. The words are part of the format.
type state string

const (
	ready    state = ""
	making   state = "making"
	removing state = "removing"
	deferred state = "deferred" // to be removed when it is let go
)

// record is what is known of a device.
type record struct {
	ID    uint32 `json:"id"`   // in the pool
	Size  int64  `json:"size"` // bytes
	State state  `json:"state,omitempty"`
	// Origin is the device that is suspended while this one is made of it.
	Origin string `json:"origin,omitempty"`
	// Txid is the pool's transaction id when what State says is done.
	Txid uint64 `json:"txid,omitempty"`
}

// Keys of records: devicePrefix with the name of a device has its record, markPrefix
// with the name that its state is not ready, so that nobody has to look through all.
const (
	devicePrefix = "device/"
	markPrefix   = "unfinished/"
)

func put(t driver.Records, name string, r record) error {
	return errors.Join(mark(t, name, r.State), t.Put(devicePrefix+name, r))
}

func mark(t driver.Records, name string, s state) error {
	if s == ready {
		return t.Delete(markPrefix + name)
	}
	return t.Put(markPrefix+name, s)
}

// markAll marks the devices of a pool whose records are older than marks.
func (p *Pool) markAll(r *made) error {
	r.Marked = true
	return p.state.Update(func(t driver.Records) error {
		states := map[string]state{}
		err := t.Each(devicePrefix, func(key string, value json.RawMessage) error {
			var d record
			err := json.Unmarshal(value, &d)
			states[strings.TrimPrefix(key, devicePrefix)] = d.State
			return err
		})
		for name, s := range states {
			err = errors.Join(err, mark(t, name, s))
		}
		return errors.Join(err, t.Put(poolKey, r))
	})
}

func (p *Pool) mapped(name string) string { return p.prefix + "-" + name }

func (p *Pool) get(name string) (r record, found bool, err error) {
	err = p.state.View(func(t driver.Records) (err error) { found, err = t.Get(devicePrefix+name, &r); return err })
	return r, found, err
}

// known returns a device that is there.
func (p *Pool) known(name string) (record, error) {
	r, found, err := p.get(name)
	if err == nil && (!found || r.State != ready) {
		err = errs.New(errs.NotFound, "devmapper: Unknown device %s", name)
	}
	return r, err
}

// change carries out a change of the pool's metadata about the device name: r as it is
// intended is recorded with the transaction id that the pool will have, do is called with
// it, the pool gets the transaction id, and done makes the record what it is then, nil for
// none. Precondition: see locked.
func (p *Pool) change(name string, intend func(*made, *record) error, do func(record) error, done func(*record) *record) error {
	var pool made
	var r record
	err := p.state.Update(func(t driver.Records) error {
		if _, err := t.Get(poolKey, &pool); err != nil {
			return err
		}
		if _, err := t.Get(devicePrefix+name, &r); err != nil {
			return err
		}
		if err := intend(&pool, &r); err != nil {
			return err
		}
		r.Txid = pool.Txid + 1
		return errors.Join(t.Put(poolKey, pool), put(t, name, r))
	})
	if err != nil {
		return err
	}
	if err := do(r); err != nil {
		return err
	}
	if err := p.dm.Message(p.name, fmt.Sprintf("set_transaction_id %d %d", pool.Txid, pool.Txid+1)); err != nil {
		return err
	}
	return p.state.Update(func(t driver.Records) error {
		pool.Txid++
		if err := t.Put(poolKey, pool); err != nil {
			return err
		}
		if r := done(&r); r != nil {
			r.Txid = 0
			return put(t, name, *r)
		}
		return errors.Join(mark(t, name, ready), t.Delete(devicePrefix+name))
	})
}

// add makes a device by what message says of its number; origin is what it is a snapshot
// of, or "". Precondition: see locked.
func (p *Pool) add(name, origin string, size int64, message func(id uint32) string) error {
	err := p.change(name, func(pool *made, r *record) error {
		if r.State != ready || r.Size != 0 {
			return errs.New(errs.Busy, "devmapper: device %s is there already", name)
		}
		*r = record{ID: pool.Next, Size: size, State: making, Origin: origin}
		pool.Next++
		return nil
	}, func(r record) error {
		return p.whileSuspended(origin, func() error { return p.dm.Message(p.name, message(r.ID)) })
	}, func(r *record) *record {
		r.State, r.Origin = ready, ""
		return r
	})
	if err == nil || errs.Of(err) == errs.Busy {
		return err
	}
	return errors.Join(p.explain(err), p.remove(name))
}

// whileSuspended runs fn with the device origin suspended, if it is active. That it is so
// is recorded before, so that whoever finds fn interrupted can end it.
func (p *Pool) whileSuspended(origin string, fn func() error) error {
	if origin == "" {
		return fn()
	}
	_, active, err := p.active(origin)
	if err != nil {
		return err
	}
	if !active {
		return fn()
	}
	if err := p.dm.Suspend(p.mapped(origin)); err != nil {
		return err
	}
	return errors.Join(fn(), p.dm.Resume(p.mapped(origin)))
}

// active looks for a device that can be read. One without a table, whose maker has died,
// is none: the kernel would suspend it, and then not resume it.
func (p *Pool) active(name string) (dm.Device, bool, error) {
	d, there, err := p.dm.Lookup(p.mapped(name))
	return d, there && d.Live, err
}

// resume ends the suspension of a device by somebody who died.
func (p *Pool) resume(name string) error {
	d, active, err := p.active(name)
	if err != nil || !active || !d.Suspended {
		return err
	}
	return p.dm.Resume(p.mapped(name))
}

// explain says that a pool is full where the kernel says something else.
func (p *Pool) explain(err error) error {
	s, serr := p.dm.Pool(p.name)
	switch {
	case serr != nil:
	case s.Mode == "ro" || s.Mode == "Fail" || s.NeedCheck:
		return errs.New(errs.Corrupt, "the pool %s is %s, perhaps because its metadata is full: %w", p.name, s.Mode, err)
	case s.Mode == "out_of_data_space":
		return errs.New(errs.NoSpace, "the pool %s is full: %w", p.name, err)
	}
	return err
}

// Make implements devices.Pool.
func (p *Pool) Make(name string, size int64) error {
	return p.locked(func() error {
		return p.add(name, "", size, func(id uint32) string { return fmt.Sprintf("create_thin %d", id) })
	})
}

// Snapshot implements devices.Pool. An active origin is suspended for that moment, which
// also writes its file system out: or else the snapshot would be of something in between.
func (p *Pool) Snapshot(origin, name string, size int64) error {
	return p.locked(func() error { return p.snapshot(origin, name, size) })
}

func (p *Pool) snapshot(origin, name string, size int64) error {
	of, err := p.known(origin)
	if err != nil {
		return err
	}
	return p.add(name, origin, max(size, of.Size), func(id uint32) string { return fmt.Sprintf("create_snap %d %d", id, of.ID) })
}

// Grow implements devices.Pool. The size of a thin device is in its table only.
func (p *Pool) Grow(name string, size int64) error {
	r, err := p.known(name)
	if err != nil {
		return err
	}
	if size > r.Size {
		r.Size = size
		err = p.state.Update(func(t driver.Records) error { return put(t, name, r) })
		if err != nil {
			return err
		}
	}
	// Also when the size is recorded: who did that may have died before this.
	_, active, err := p.active(name)
	if err != nil || !active {
		return err
	}
	params, err := p.thinTable(r)
	if err != nil {
		return err
	}
	return p.dm.Reload(p.mapped(name), "thin", params, r.Size)
}

func (p *Pool) thinTable(r record) (string, error) {
	pool, there, err := p.dm.Lookup(p.name)
	if err == nil && !there {
		err = errs.New(errs.NotFound, "devmapper: the pool %s is not active", p.name)
	}
	return fmt.Sprintf("%s %d", pool.Number(), r.ID), err
}

// Attach implements devices.Pool.
func (p *Pool) Attach(name string) (string, error) {
	r, err := p.known(name)
	if err != nil {
		return "", err
	}
	d, there, err := p.dm.Whole(p.mapped(name))
	if err == nil && !there {
		var params string
		if params, err = p.thinTable(r); err == nil {
			d, err = p.dm.Create(p.mapped(name), "thin", params, r.Size, false)
		}
	}
	return d.Path(), err
}

// Path implements devices.Pool: the number of a device is not known before.
func (p *Pool) Path(string) string { return "" }

// Detach implements devices.Pool.
func (p *Pool) Detach(name string) error {
	_, there, err := p.dm.Lookup(p.mapped(name))
	if err != nil || !there {
		return err
	}
	return p.dm.Remove(p.mapped(name), p.opts.DeferredRemoval)
}

// Remove implements devices.Pool.
func (p *Pool) Remove(name string) error {
	return p.locked(func() error { return p.remove(name) })
}

func (p *Pool) remove(name string) error {
	if _, found, err := p.get(name); err != nil || !found {
		return err
	}
	err := p.Detach(name)
	if errs.Of(err) == errs.Busy && p.opts.DeferredDeletion {
		return p.deferDeletion(name)
	}
	if err != nil {
		return err
	}
	if _, there, err := p.dm.Lookup(p.mapped(name)); err != nil || there {
		if err == nil && p.opts.DeferredDeletion { // to be removed by the kernel when it is let go
			return p.deferDeletion(name)
		}
		return errors.Join(err, errs.New(errs.Busy, "devmapper: device %s is in use", name))
	}
	if p.opts.BlkDiscard {
		p.discard(name)
	}
	return p.delete(name)
}

// delete takes a device out of the pool. One that never came to be is no error.
func (p *Pool) delete(name string) error {
	return p.change(name, func(_ *made, r *record) error {
		r.State = removing
		return nil
	}, func(r record) error {
		err := p.dm.Message(p.name, fmt.Sprintf("delete %d", r.ID))
		if errors.Is(err, unix.ENODATA) {
			return nil
		}
		return err
	}, func(*record) *record { return nil })
}

// discard gives the blocks of a device back to the file that the pool lies in, which
// deleting it does not. It is only for space: what fails is left.
func (p *Pool) discard(name string) {
	path, err := p.Attach(name)
	if err != nil {
		return
	}
	if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
		if size, err := sys.BlockSize(int(f.Fd())); err == nil {
			_ = sys.BlockDiscard(int(f.Fd()), 0, size)
		}
		f.Close()
	}
	_ = p.dm.Remove(p.mapped(name), false)
}

func (p *Pool) deferDeletion(name string) error {
	return p.state.Update(func(t driver.Records) error {
		var r record
		if _, err := t.Get(devicePrefix+name, &r); err != nil {
			return err
		}
		r.State = deferred
		return put(t, name, r)
	})
}

// mend completes what commands that died, and deferred deletions, have left. r is the
// record of the pool.
func (p *Pool) mend(r made) error {
	s, err := p.dm.Pool(p.name)
	if err != nil {
		return err
	}
	if s.Mode == "Fail" || s.Mode == "Error" {
		return errs.New(errs.Corrupt, "the pool %s has failed (%s): thin_check and thin_repair its metadata", p.name, s.Mode)
	}
	left := map[string]record{}
	err = p.state.View(func(t driver.Records) error {
		return t.Each(markPrefix, func(key string, _ json.RawMessage) error {
			name := strings.TrimPrefix(key, markPrefix)
			var d record
			_, err := t.Get(devicePrefix+name, &d)
			left[name] = d
			return err
		})
	})
	if err != nil {
		return err
	}
	if s.Txid != r.Txid && !intended(left, s.Txid) {
		return errs.New(errs.Corrupt, "the pool %s is at transaction %d, this store at %d: it is another pool, or has lost changes (restore its metadata, or use another --root)", p.name, s.Txid, r.Txid)
	}
	if s.Txid != r.Txid { // what was intended has been carried out
		r.Txid = s.Txid
		if err := p.state.Update(func(t driver.Records) error { return t.Put(poolKey, r) }); err != nil {
			return err
		}
	}
	for name, d := range left {
		if err := p.finish(name, d); err != nil {
			return fmt.Errorf("device %s, which a command that died has left: %w", name, err)
		}
	}
	return nil
}

func intended(left map[string]record, txid uint64) bool {
	for _, d := range left {
		if d.Txid == txid {
			return true
		}
	}
	return false
}

// finish removes a device whose making or removal was not completed.
func (p *Pool) finish(name string, d record) error {
	if d.Origin != "" {
		if err := p.resume(d.Origin); err != nil {
			return err
		}
	}
	if dev, there, err := p.dm.Lookup(p.mapped(name)); err != nil || there && (d.State == deferred && dev.OpenCount > 0) {
		return err // not yet
	}
	return p.remove(name)
}

// Size implements devices.Pool.
func (p *Pool) Size(name string) (int64, error) {
	r, err := p.known(name)
	return r.Size, err
}

// Usage implements devices.Pool. Only an active device says what it has mapped, and
// nobody says what of that is shared: it is what it has more than its parent.
func (p *Pool) Usage(name, parent string) (int64, error) {
	own, err := p.mappedBytes(name)
	if err != nil {
		return 0, err
	}
	other, err := p.mappedBytes(parent)
	return max(own-other, 0), err
}

func (p *Pool) mappedBytes(name string) (n int64, err error) {
	_, active, err := p.active(name)
	if err != nil {
		return 0, err
	}
	if !active {
		if _, err := p.Attach(name); err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, p.dm.Remove(p.mapped(name), p.opts.DeferredRemoval)) }()
	}
	_, line, _, err := p.dm.Status(p.mapped(name), false)
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.Fields(line + " -")[0], 10, 64)
	if err != nil {
		return 0, errs.New(errs.Corrupt, "the status of device %s makes no sense: %q", name, line)
	}
	return sectors * dm.Sector, nil
}

// deferredCount is how many devices are to be removed when they are let go.
func (p *Pool) deferredCount() (n int) {
	_ = p.state.View(func(t driver.Records) error {
		return t.Each(markPrefix, func(_ string, value json.RawMessage) error {
			var s state
			if json.Unmarshal(value, &s) == nil && s == deferred {
				n++
			}
			return nil
		})
	})
	return n
}
