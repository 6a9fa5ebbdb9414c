package volume

import (
	"context"

	"github.com/layerfs/layerfs/blockstore"
)

// Discard unmaps the whole blocks within the range and leaves the rest
// alone, as dm-thin does. What it discards reads as zeros, or as the
// external origin.
func (v *Volume) Discard(off, length int64) error {
	n, err := v.clip(off, length)
	if err != nil {
		return err
	}
	from, to := v.whole(off, off+n)
	return v.remove(from, to, v.svc.Unmap)
}

// whole is the range of blocks that lie wholly in [off, end); the device's
// last block is whole when it is covered up to the device's end.
func (v *Volume) whole(off, end int64) (from, to uint64) {
	from, to = uint64((off+v.bs-1)/v.bs), uint64(end/v.bs)
	if end == v.Size() {
		to = uint64((end + v.bs - 1) / v.bs)
	}
	return from, max(from, to)
}

// remove takes the mappings of the blocks away, with the pool's call tell.
func (v *Volume) remove(from, to uint64, tell func(id uint32, from, count uint64) error) error {
	if from >= to {
		return nil
	}
	v.claims.take(from, to)
	defer v.claims.drop(from)
	v.pushing.Lock()
	defer v.pushing.Unlock()
	if err := v.pushLocked(false); err != nil {
		return err
	}
	// With io in hand nothing reads or writes by a mapping that goes.
	v.io.Lock()
	defer v.io.Unlock()
	err := tell(v.id, from, to-from)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changes++
	v.maps.forget(from/leafBlocks, (to+leafBlocks-1)/leafBlocks)
	return err
}

// Zero makes the range read as zeros. Whole blocks are unmapped when
// mayUnmap is set; otherwise they get data blocks of zeros, so that writing
// to them later needs no space.
func (v *Volume) Zero(off, length int64, mayUnmap bool) error {
	return v.ZeroContext(context.Background(), off, length, mayUnmap)
}

// ZeroContext is Zero; ctx ends waiting for space, with EINTR.
func (v *Volume) ZeroContext(ctx context.Context, off, length int64, mayUnmap bool) error {
	n, err := v.clip(off, length)
	if err != nil {
		return err
	}
	if !mayUnmap {
		return v.writeZeros(ctx, off, n)
	}
	from, to := v.whole(off, off+n)
	start, end := int64(from)*v.bs, min(int64(to)*v.bs, off+n)
	if from >= to {
		return v.zeroEdges(ctx, off, off+n)
	}
	if err := v.zeroEdges(ctx, off, start); err != nil {
		return err
	}
	if err := v.remove(from, to, v.svc.SetZero); err != nil {
		return err
	}
	return v.zeroEdges(ctx, end, off+n)
}

// Provision gives every block of the range that has none a data block, with
// what it shows, so that writing to it needs no space later.
func (v *Volume) Provision(ctx context.Context, off, length int64) error {
	n, err := v.clip(off, length)
	if err != nil || n == 0 {
		return err
	}
	for b := off / v.bs; b <= (off+n-1)/v.bs; b++ {
		if err := v.provisionOne(ctx, uint64(b)); err != nil {
			return err
		}
	}
	return nil
}

func (v *Volume) provisionOne(ctx context.Context, b uint64) error {
	m, err := v.lookup(b)
	if err != nil || m.HasData() {
		return err
	}
	grants, err := v.reserve(ctx, 1)
	if err != nil {
		return err
	}
	v.claims.take(b, b+1)
	defer v.claims.drop(b)
	v.io.RLock()
	defer v.io.RUnlock()
	if m, err = v.lookup(b); err == nil && !m.HasData() {
		err = v.fillPart(grants[0], m, nil, int64(b)*v.bs)
	}
	if err != nil || m.HasData() {
		v.giveUp(grants)
		return err
	}
	v.assign(b, grants[0].Block, false)
	return nil
}

// Realize gives data blocks to what dm-thin cannot express: ranges that are
// zeros, or cut off, where the external origin, which is origin bytes long, has
// something; and its end, when that is no whole sector, which a block device does
// not have.
func (v *Volume) Realize(ctx context.Context, origin int64) error {
	end := min(v.Size(), origin)
	shows := v.originEnd() / blockstore.SectorSize * blockstore.SectorSize
	for off := int64(0); off < end; off += v.bs {
		m, err := v.lookup(uint64(off / v.bs))
		if err != nil {
			return err
		}
		if m.HasData() || !m.Zero() && min(off+v.bs, end) <= shows {
			continue
		}
		if err := v.provisionOne(ctx, uint64(off/v.bs)); err != nil {
			return err
		}
	}
	return nil
}

// zeroEdges zeroes parts of blocks, but not those that read as zeros anyway.
func (v *Volume) zeroEdges(ctx context.Context, off, end int64) error {
	for off < end {
		next := min(end, (off/v.bs+1)*v.bs)
		m, err := v.lookup(uint64(off / v.bs))
		if err != nil {
			return err
		}
		if m.HasData() || !m.Zero() && off < v.originEnd() {
			if err := v.writeZeros(ctx, off, next-off); err != nil {
				return err
			}
		}
		off = next
	}
	return nil
}

// originEnd is where the external origin ends to show through.
func (v *Volume) originEnd() int64 {
	if v.origin == nil {
		return 0
	}
	v.io.RLock()
	defer v.io.RUnlock()
	return v.origin.valid
}

var zeros [pieceSize]byte

func (v *Volume) writeZeros(ctx context.Context, off, n int64) error {
	for n > 0 {
		k, err := v.WriteContext(ctx, zeros[:min(n, pieceSize)], off)
		if err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}
