package devicemapper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/kernelbackend/dm"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/driver/devices"
)

// lowWater is the low-water mark of a pool in blocks, Docker's: dm events below it are
// for who monitors the machine.
const lowWater = 32768

// Pool implements devices.Pool.
type Pool struct {
	home, prefix string
	state        driver.State
	dm           *dm.Mapper
	opts         devices.Options
	name         string // in device-mapper
	kind         kind
	data, meta   string // devices or files that it lies in
}

// kind is what a pool is made of. The words are part of the format.
type kind string

const (
	loopKind   kind = "loop"
	deviceKind kind = "devices"
	thinpool   kind = "thinpool"
	lvmKind    kind = "lvm"
)

// made is the record of the pool.
type made struct {
	Kind     kind   `json:"kind"`
	Data     string `json:"data,omitempty"` // device or file
	Metadata string `json:"metadata,omitempty"`
	Pool     string `json:"pool,omitempty"` // by its name in device-mapper
	LVM      string `json:"lvm,omitempty"`  // the device that LVM has
	Block    int64  `json:"block"`          // bytes
	Txid     uint64 `json:"txid"`           // of the last change that is done
	Next     uint32 `json:"next"`           // number of the next device
	Marked   bool   `json:"marked"`         // devices that are not ready have marks, which they once had not
}

const poolKey = "pool"

// Open opens the pool whose files are in home, or makes it.
func Open(home string, state driver.State, o devices.Options) (*Pool, error) {
	m, err := dm.Open()
	if err != nil {
		return nil, err
	}
	p := &Pool{home: filepath.Join(home, "devicemapper"), state: state, dm: m, opts: o}
	if err := sys.MakeDirs(p.home, 0700); err != nil {
		return nil, err
	}
	if err := p.locked(func() error { return p.open(home) }); err != nil {
		m.Close()
		return nil, err
	}
	return p, nil
}

// locked runs fn while no other process changes the pool.
func (p *Pool) locked(fn func() error) error {
	return driver.Locked(filepath.Join(p.home, "lock"), fn)
}

// open opens the pool. Precondition: see locked.
func (p *Pool) open(home string) error {
	var st unix.Stat_t
	if err := unix.Stat(home, &st); err != nil {
		return err
	}
	p.prefix = fmt.Sprintf("layerfs-%d:%d-%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino)
	r, err := p.record()
	if err != nil {
		return err
	}
	p.kind, p.name, p.data, p.meta = r.Kind, p.prefix+"-pool", r.Data, r.Metadata
	if r.Pool != "" {
		p.name = r.Pool
	}
	p.opts.BlockSize = r.Block
	if err := p.activate(&r); err != nil {
		return err
	}
	if !r.Marked {
		if err := p.markAll(&r); err != nil {
			return err
		}
	}
	return p.mend(r)
}

// record returns the record of the pool; a new one is made of what the options say.
func (p *Pool) record() (r made, err error) {
	var found bool
	err = p.state.View(func(t driver.Records) (err error) { found, err = t.Get(poolKey, &r); return err })
	if err != nil {
		return r, err
	}
	if found {
		return r, p.sameDevices(r)
	}
	if r, err = p.prepare(); err != nil {
		return r, err
	}
	return r, p.state.Update(func(t driver.Records) error { return t.Put(poolKey, r) })
}

// sameDevices refuses options that name other devices than the pool was made of.
func (p *Pool) sameDevices(r made) error {
	for _, c := range []struct{ option, given, is string }{
		{"dm.datadev", p.opts.DataDev, r.Data}, {"dm.metadatadev", p.opts.MetadataDev, r.Metadata},
		{"dm.thinpooldev", p.opts.ThinpoolDev, r.Pool}, {"dm.directlvm_device", p.opts.DirectLVMDevice, r.LVM},
	} {
		if c.given != "" && c.given != c.is {
			return errs.New(errs.Usage, "devmapper: %s=%s: the pool of this store was made of %s, which cannot be changed", c.option, c.given, describe(r))
		}
	}
	return nil
}

func describe(r made) string {
	switch r.Kind {
	case thinpool:
		return "the pool " + r.Pool
	case lvmKind:
		return "the device " + r.LVM
	default:
		return r.Data + " and " + r.Metadata
	}
}

// prepare makes what a new pool lies in.
func (p *Pool) prepare() (r made, err error) {
	r = made{Block: p.opts.BlockSize, Marked: true}
	switch o := p.opts; {
	case o.ThinpoolDev != "":
		r.Kind, r.Pool = thinpool, o.ThinpoolDev
		r.Block, r.Txid, err = p.adopt(o.ThinpoolDev)
	case o.DirectLVMDevice != "":
		r.Kind, r.LVM = lvmKind, o.DirectLVMDevice
		if r.Pool, err = p.makeLVM(); err == nil {
			r.Block, r.Txid, err = p.adopt(r.Pool)
		}
	case o.DataDev != "":
		r.Kind, r.Data, r.Metadata = deviceKind, o.DataDev, o.MetadataDev
		err = format(o.MetadataDev)
	default:
		r.Kind, r.Data, r.Metadata = loopKind, filepath.Join(p.home, "data"), filepath.Join(p.home, "metadata")
		err = p.makeFiles(r)
	}
	return r, err
}

// adopt looks at a pool that is there and returns the size of its blocks in bytes and
// its transaction id.
func (p *Pool) adopt(name string) (block int64, txid uint64, err error) {
	s, err := p.dm.Pool(name)
	if err != nil {
		if errors.Is(err, unix.ENXIO) {
			err = errs.New(errs.NotFound, "devmapper: dm.thinpooldev=%s: there is no such device", name)
		}
		return 0, 0, err
	}
	_, params, _, err := p.dm.Table(name)
	if err != nil {
		return 0, 0, err
	}
	f := strings.Fields(params) // metadata device, data device, block size, low-water mark, …
	if len(f) < 3 {
		return 0, 0, errs.New(errs.Corrupt, "the table of pool %s makes no sense: %q", name, params)
	}
	sectors, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return 0, 0, errs.New(errs.Corrupt, "the table of pool %s makes no sense: %q", name, params)
	}
	if s.DataUsed != 0 || s.Txid != 0 {
		return 0, 0, errs.New(errs.Usage, "devmapper: Unable to take ownership of thin-pool (%s) that already has used data blocks", name)
	}
	return sectors * dm.Sector, s.Txid, nil
}

// format makes a metadata device one of an empty pool: its first block is zeros.
func format(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 4096))
	return errors.Join(err, f.Sync(), f.Close())
}

// makeFiles makes the sparse files of loop-lvm. A metadata file that a crash has left
// before the record of the pool is made anew.
func (p *Pool) makeFiles(r made) error {
	for _, f := range []struct {
		path string
		size int64
	}{{r.Data, p.opts.LoopDataSize}, {r.Metadata, p.opts.LoopMetadataSize}} {
		if err := sys.Step("truncate"); err != nil {
			return err
		}
		file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0600)
		if err != nil {
			return err
		}
		if err := errors.Join(file.Truncate(f.size), file.Sync(), file.Close()); err != nil {
			return err
		}
	}
	return nil
}

// activate makes the pool appear in device-mapper, unless it is there. Precondition: see
// locked.
func (p *Pool) activate(r *made) error {
	ours := r.Kind != thinpool && r.Kind != lvmKind
	look := p.dm.Lookup
	if ours {
		look = p.dm.Whole
	}
	d, there, err := look(p.name)
	if err == nil && there && ours && d.Suspended { // by a Resize that has died
		err = p.dm.Resume(p.name)
	}
	if err != nil || there {
		return err
	}
	if !ours {
		return errs.New(errs.NotFound, "devmapper: the pool %s is not active: activate it first (vgchange -ay, dmsetup)", p.name)
	}
	data, size, err := number(r.Data, r.Kind == loopKind)
	if err != nil {
		return err
	}
	meta, _, err := number(r.Metadata, r.Kind == loopKind)
	if err != nil {
		return err
	}
	size -= size % r.Block
	if _, err := p.dm.Create(p.name, "thin-pool", p.poolTable(meta, data), size, false); err != nil {
		return fmt.Errorf("activating the pool of %s: %w", describe(*r), err)
	}
	return nil
}

// poolTable are the parameters of the pool's target, as Docker's were.
func (p *Pool) poolTable(meta, data string) string {
	return fmt.Sprintf("%s %s %d %d 1 skip_block_zeroing", meta, data, p.opts.BlockSize/dm.Sector, lowWater)
}

// number returns the MAJOR:MINOR and the size of a block device, or of the loop device of
// a file, which is made if it is not there.
func number(path string, loop bool) (string, int64, error) {
	if loop {
		dev, err := loopOf(path)
		if err != nil {
			return "", 0, fmt.Errorf("loop device of %s: %w", path, err)
		}
		path = dev
	}
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", 0, errs.New(errs.Usage, "%s is not a block device", path)
	}
	size, err := sys.BlockSize(int(f.Fd()))
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), size, err
}

// Close implements devices.Pool. The pool stays active.
func (p *Pool) Close() error { return p.dm.Close() }
