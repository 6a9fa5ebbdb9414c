package blockstore

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore/thinxml"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// SidecarPath is where the sidecar of a data file lies.
func SidecarPath(data string) string { return data + ".json" }

// ReadSidecar reads a sidecar; one that does not exist is empty.
func ReadSidecar(path string) (*Sidecar, error) {
	s := &Sidecar{}
	raw, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return s, nil
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, errs.New(errs.Corrupt, "sidecar %s: %w", path, err)
	}
	return s, nil
}

// WriteSidecar writes the sidecar of the pool in the current directory.
func WriteSidecar(s *Sidecar) error {
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := SidecarPath(dataName)
	if err := os.WriteFile(path+".new", append(raw, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Restore makes a pool in dir of a data file and thin_dump's XML of the
// metadata that belongs to it. dir is new, or an exported pool whose data
// file it is. Until the very end nothing that was there is touched; the data
// file is moved, or copied from another file system.
func Restore(dir, data string, xml io.Reader, side *Sidecar) error {
	back, err := exportedPool(dir, data)
	if err != nil {
		return err
	}
	if back {
		return restoreBack(dir, xml, side)
	}
	made, err := makeDirectory(dir)
	if err != nil {
		return err
	}
	err = build(dir, indexName, data, xml, side)
	if err == nil {
		err = takeData(data, filepath.Join(dir, dataName))
	}
	if err != nil {
		clean(dir, made)
		return err
	}
	return syncPath(dir)
}

// exportedPool reports whether dir is an exported pool that data belongs to.
func exportedPool(dir, data string) (bool, error) {
	own, err := os.Stat(filepath.Join(dir, dataName))
	if err != nil {
		return false, nil
	}
	given, err := os.Stat(data)
	if err != nil || !os.SameFile(own, given) {
		return false, nil
	}
	p, err := Open(dir)
	if err != nil {
		return false, err
	}
	exported := p.sb.Exported
	if err := p.Close(); err != nil {
		return false, err
	}
	if !exported {
		return false, errs.New(errs.Busy, "the pool %s is not exported: its own index is the one that is right", dir)
	}
	return true, nil
}

const newIndexName, oldIndexName = "index.new", "index.old"

// restoreBack replaces the index of an exported pool.
func restoreBack(dir string, xml io.Reader, side *Sidecar) error {
	fresh, old, now := filepath.Join(dir, newIndexName), filepath.Join(dir, oldIndexName), filepath.Join(dir, indexName)
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := build(dir, newIndexName, filepath.Join(dir, dataName), xml, side); err != nil {
		_ = os.RemoveAll(fresh)
		return err
	}
	// A crash between the renames leaves a pool without an index and both of
	// them beside it; Open puts the new one in place.
	if err := os.Rename(now, old); err != nil {
		return err
	}
	if err := os.Rename(fresh, now); err != nil {
		return err
	}
	if err := syncPath(dir); err != nil {
		return err
	}
	return os.RemoveAll(old)
}

// finishRestore completes a restoreBack that a crash cut short.
func finishRestore(dir string) error {
	fresh, now := filepath.Join(dir, newIndexName), filepath.Join(dir, indexName)
	if _, err := os.Lstat(now); !os.IsNotExist(err) {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, oldIndexName)); err != nil {
		return nil
	}
	return os.Rename(fresh, now)
}

// build makes an index called name in dir out of XML.
func build(dir, name, data string, xml io.Reader, side *Sidecar) error {
	fi, err := os.Stat(data)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	idx, err := openBadger(path, "", side.Options.Small)
	if err != nil {
		return err
	}
	b := &builder{idx: idx, side: side, dataSize: fi.Size(), seen: map[[32]byte]uint64{}, owners: map[uint64][]uint32{}, names: map[string]struct{}{}, next: 1}
	err = thinxml.Read(xml, b)
	if err == nil {
		err = b.finish()
	}
	if err == nil {
		err = verify(idx)
	}
	if e := idx.close(); err == nil {
		err = e
	}
	return err
}

// verify loads an index, which checks all of it, before anything is moved.
func verify(idx index) error {
	p := &Pool{idx: idx, changed: make(chan struct{})}
	if err := p.load(); err != nil {
		return err
	}
	if p.mode == ReadOnly {
		return errs.New(errs.Corrupt, "the metadata is damaged: %w", p.cause)
	}
	return nil
}

func takeData(from, to string) error {
	if err := os.Rename(from, to); err == nil {
		return nil
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	if err := sys.CopyData(int(dst.Fd()), int(src.Fd()), fi.Size()); err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	return dst.Sync()
}

// builder makes trees of a stream of mappings, bottom up. Leaves and inner
// nodes that are equal become one, so that what the devices share in the
// metadata they share in the pool.
type builder struct {
	idx      index
	side     *Sidecar
	dataSize int64 // bytes
	sb       thinxml.Superblock
	next     uint64 // node id
	seen     map[[32]byte]uint64
	owners   map[uint64][]uint32 // by chunk: the first device that maps a block, plus one
	dev      thinxml.Device
	path     []*node // the nodes being filled, leaf first
	leaf     uint64  // the number of path[0]
	highest  uint64  // virtual block of the device
	batch    []record
	records  []record
	maxID    uint32
	names    map[string]struct{}
}

func (b *builder) Superblock(sb thinxml.Superblock) error {
	if sb.Flags&thinxml.NeedsCheck != 0 {
		return errs.New(errs.Corrupt, "the metadata is marked as needing a check: thin_check and thin_repair come first")
	}
	if sb.DataBlocks == 0 || sb.DataBlocks > maxBlocks {
		return errs.New(errs.Corrupt, "nr_data_blocks %d: a pool has 1 to %d", sb.DataBlocks, uint64(maxBlocks))
	}
	if want := int64(sb.DataBlocks) * int64(sb.DataBlockSize) * SectorSize; b.dataSize < want {
		return errs.New(errs.Corrupt, "the data file has %d bytes, the metadata speaks of %d", b.dataSize, want)
	}
	b.sb = sb
	return nil
}

func (b *builder) Device(d thinxml.Device) error {
	b.dev, b.path, b.highest = d, []*node{{}}, 0
	b.leaf = 0
	b.maxID = max(b.maxID, d.ID)
	return nil
}

func (b *builder) Map(r thinxml.Range) error {
	for i := range r.Length {
		v, data := r.Origin+i, r.Data+i
		if v >= MaxDeviceSize/uint64(MinBlockSize) {
			return errs.New(errs.Corrupt, "device %d maps virtual block %d: beyond the largest device", b.dev.ID, v)
		}
		if leaf := v / fanout; leaf != b.leaf {
			if err := b.closeLeaf(leaf); err != nil {
				return err
			}
		}
		b.path[0].set(int(v%fanout), leafEntry(data, b.owner(data)))
		b.highest = v
	}
	return nil
}

// owner returns the first device that maps the block.
func (b *builder) owner(block uint64) uint32 {
	c := b.owners[block/chunkBlocks]
	if c == nil {
		c = make([]uint32, chunkBlocks)
		b.owners[block/chunkBlocks] = c
	}
	if o := &c[block%chunkBlocks]; *o == 0 {
		*o = b.dev.ID + 1
	}
	return c[block%chunkBlocks] - 1
}

// closeLeaf finishes the leaf being filled, and every node above it that leaf
// number next does not belong to.
func (b *builder) closeLeaf(next uint64) error {
	for level := 0; ; level++ {
		n := b.path[level]
		if level > 0 && b.leaf>>(8*level) == next>>(8*level) {
			break
		}
		if n.used > 0 {
			id, err := b.write(n)
			if err != nil {
				return err
			}
			if level+1 == len(b.path) {
				b.path = append(b.path, &node{level: uint8(level + 1)})
			}
			b.path[level+1].set(int(b.leaf>>(8*level))&(fanout-1), id)
		} else if level+1 == len(b.path) {
			b.path = append(b.path, &node{level: uint8(level + 1)})
		}
		b.path[level] = &node{level: uint8(level)}
	}
	b.leaf = next
	return nil
}

// write stores a node and returns its id, or that of an equal one.
func (b *builder) write(n *node) (uint64, error) {
	n.id = 0
	sum := sha256.Sum256(n.encode())
	if id, ok := b.seen[sum]; ok {
		return id, nil
	}
	n.id = b.next
	b.next++
	b.seen[sum] = n.id
	b.batch = append(b.batch, record{nodeKey(n.id), n.encode()})
	if len(b.batch) < 4096 {
		return n.id, nil
	}
	return n.id, b.flush()
}

func (b *builder) flush() error {
	err := b.idx.commit(b.batch, nil)
	b.batch = nil
	return err
}

func (b *builder) EndDevice() error {
	rec := deviceRecord{ID: b.dev.ID, Name: ThinName(b.dev.ID), Mapped: b.dev.MappedBlocks, Txid: b.dev.Transaction}
	root, err := b.root()
	if err != nil {
		return err
	}
	if root != nil {
		rec.Root, rec.Level = root.id, root.level
		rec.Size = int64(b.highest+1) * int64(b.sb.DataBlockSize) * SectorSize
	}
	rec.Size = max(rec.Size, MinDeviceSize)
	for _, d := range b.side.Devices {
		if d.ID == rec.ID {
			rec.Name, rec.Parent, rec.Origin = d.Name, d.Parent, d.Origin
			rec.Size = d.Size
		}
	}
	if err := checkName(rec.Name); err != nil {
		return err
	}
	// What dm-thin made may have the number of another one's name.
	for i, name := 2, rec.Name; b.taken(rec.ID, rec.Name); i++ {
		rec.Name = fmt.Sprintf("%s-%d", name, i)
	}
	b.names[rec.Name] = struct{}{}
	b.records = append(b.records, encodeJSON(deviceKey(rec.ID), rec))
	return nil
}

// taken reports whether another device has the name, or will have it.
func (b *builder) taken(id uint32, name string) bool {
	for _, d := range b.side.Devices {
		if d.Name == name && d.ID != id {
			return true
		}
	}
	_, used := b.names[name]
	return used
}

// root finishes the tree of the device; nil when nothing is mapped.
func (b *builder) root() (*node, error) {
	for level := 0; ; level++ {
		n := b.path[level]
		if level+1 == len(b.path) {
			if n.used == 0 {
				return nil, nil
			}
			id, err := b.write(n)
			n.id = id
			return n, err
		}
		if n.used == 0 {
			continue
		}
		id, err := b.write(n)
		if err != nil {
			return nil, err
		}
		b.path[level+1].set(int(b.leaf>>(8*level))&(fanout-1), id)
	}
}

func (b *builder) finish() error {
	o := b.side.Options
	o.BlockSize = int(b.sb.DataBlockSize) * SectorSize
	o.DataSize = int64(b.sb.DataBlocks) * int64(o.BlockSize)
	if err := o.check(); err != nil {
		return err
	}
	if err := b.flush(); err != nil {
		return err
	}
	sb := superblock{Options: o, Blocks: b.sb.DataBlocks, NextNode: b.next, NextDevice: b.maxID + 1, Txid: b.sb.Transaction}
	return format(b.idx, sb, func(idx index) error { return idx.commit(nil, b.records) })
}

// DockerDevices reads the names and sizes that Docker's devicemapper driver
// kept in a directory beside its loop files, one JSON file for each device.
// A directory that does not exist is empty.
func DockerDevices(dir string) ([]SidecarDevice, error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var out []SidecarDevice
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		var d struct {
			ID   *uint32 `json:"device_id"`
			Size int64   `json:"size"`
		}
		if json.Unmarshal(raw, &d) != nil || d.ID == nil || d.Size <= 0 {
			continue // the driver's own state lies there too
		}
		name := e.Name()
		out = append(out, SidecarDevice{ID: *d.ID, Name: name, Size: d.Size})
	}
	return out, nil
}
