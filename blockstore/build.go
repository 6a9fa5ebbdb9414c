package blockstore

import (
	"crypto/sha256"
	"fmt"

	"github.com/layerfs/layerfs/blockstore/thinxml"
	"github.com/layerfs/layerfs/internal/errs"
)

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
