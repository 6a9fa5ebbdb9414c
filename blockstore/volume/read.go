package volume

import (
	"io"

	"github.com/layerfs/layerfs/blockstore"
)

// ReadAt reads p; io.EOF tells of the end of the device.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.clip(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	v.io.RLock()
	defer v.io.RUnlock()
	for done := int64(0); done < n; {
		run, err := v.readRun(p[done:n], off+done)
		if err != nil {
			return int(done), err
		}
		done += run
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// readRun reads the longest stretch from off on that lies together.
func (v *Volume) readRun(p []byte, off int64) (int64, error) {
	b := uint64(off / v.bs)
	m, err := v.lookup(b)
	if err != nil {
		return 0, err
	}
	in := off % v.bs
	n := min(int64(len(p)), v.bs-in)
	for next := m; n < int64(len(p)); n = min(int64(len(p)), n+v.bs) {
		b++
		if next, err = v.lookup(b); err != nil {
			return 0, err
		}
		if !follows(m, next, b-uint64(off/v.bs)) {
			break
		}
	}
	switch {
	case m.HasData():
		_, err = v.data.ReadAt(p[:n], int64(m.Block())*v.bs+in)
	case m.Zero() || v.origin == nil:
		clear(p[:n])
	default:
		err = v.origin.read(p[:n], off)
	}
	return n, err
}

// follows reports whether next, i blocks after m, is read in one go with it.
func follows(m, next blockstore.Mapping, i uint64) bool {
	if m.HasData() {
		return next.HasData() && next.Block() == m.Block()+i
	}
	return next.Mapped() == m.Mapped() && !next.HasData()
}

// Extent is a stretch of a device.
type Extent struct {
	Length int64 // bytes
	Data   bool  // it may hold something else than zeros
}

// Extents says what of the range holds data; the answer covers it.
func (v *Volume) Extents(off, length int64) ([]Extent, error) {
	n, err := v.clip(off, length)
	if err != nil {
		return nil, err
	}
	v.io.RLock()
	defer v.io.RUnlock()
	var out []Extent
	for end := off + n; off < end; {
		data, until, err := v.extent(off)
		if err != nil {
			return nil, err
		}
		until = min(until, end)
		if k := len(out) - 1; k >= 0 && out[k].Data == data {
			out[k].Length += until - off
		} else {
			out = append(out, Extent{until - off, data})
		}
		off = until
	}
	return out, nil
}

// extent says whether off holds data, and until where at least.
func (v *Volume) extent(off int64) (data bool, until int64, err error) {
	b := uint64(off / v.bs)
	m, err := v.lookup(b)
	if err != nil {
		return false, 0, err
	}
	until = int64(b+1) * v.bs
	switch {
	case m.HasData():
		return true, until, nil
	case m.Zero():
		return false, until, nil
	case v.origin != nil && off < v.origin.valid:
		return true, min(until, v.origin.valid), nil
	}
	return v.beyond(b, until)
}

// beyond is the end of the unmapped stretch that block b, which ends at
// until, lies in, as far as that can be told in one step: a leaf without
// any mapping knows the next one that has some.
func (v *Volume) beyond(b uint64, until int64) (bool, int64, error) {
	v.mu.Lock()
	leaf := v.maps.get(b / leafBlocks)
	known := leaf != nil && leaf.Next != 0 && len(v.pending) == 0
	v.mu.Unlock()
	if !known {
		return false, until, nil
	}
	fresh, err := v.svc.Leaf(v.id, b/leafBlocks)
	if err != nil || fresh.Next == 0 {
		return false, until, err
	}
	last := uint64(blockstore.MaxDeviceSize / v.bs)
	return false, int64(min(fresh.Next, last/leafBlocks+1)*leafBlocks) * v.bs, nil
}
