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
		if done == 0 && run < n {
			v.ahead(off+run, off+n)
		}
		done += run
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// aheader is a data file that can be told what will be read next.
type aheader interface {
	// Cached reports whether the byte at off can be read without the disk.
	Cached(off int64) bool
	// Ahead has a range read into the cache, and does not wait for it.
	Ahead(off, length int64)
}

// ahead has the disk fetch the blocks in the range at once, which lie apart, if
// they have to be fetched.
func (v *Volume) ahead(off, end int64) {
	data, ok := v.data.(aheader)
	for asked := false; ok && off < end; off += v.bs - off%v.bs {
		m, err := v.lookup(uint64(off / v.bs))
		if err != nil {
			return
		}
		if !m.HasData() {
			continue
		}
		at := int64(m.Block())*v.bs + off%v.bs
		if !asked && data.Cached(at) {
			return
		}
		asked = true
		data.Ahead(at, min(v.bs-off%v.bs, end-off))
	}
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

// OriginAlone reports whether the external origin answers for all of the range,
// as far as that is known without asking the pool. Who reads it there then sees
// what ReadAt would have shown at this moment.
func (v *Volume) OriginAlone(off, length int64) bool {
	if v.origin == nil || off < 0 || length <= 0 {
		return false
	}
	v.io.RLock()
	defer v.io.RUnlock()
	if off+length > v.origin.valid {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if off+length > v.size {
		return false
	}
	for b, last := uint64(off/v.bs), uint64((off+length-1)/v.bs); b <= last; b++ {
		if m, known := v.knownLocked(b); !known || m.Mapped() || m.Zero() {
			return false
		}
	}
	return true
}

// follows reports whether next, i blocks after m, is read in one go with it.
func follows(m, next blockstore.Mapping, i uint64) bool {
	if m.HasData() {
		return next.HasData() && next.Block() == m.Block()+i
	}
	return next.Mapped() == m.Mapped() && !next.HasData()
}

// Kind is what a stretch of a device shows.
type Kind uint8

// Zeros, the external origin, or a data block.
const (
	Zeros Kind = iota
	FromOrigin
	Data
)

// Stretch is a part of a device that is all of one kind.
type Stretch struct {
	Length int64 // bytes
	Kind   Kind
	Block  uint64 // of Data: the first data block; the others follow
}

// Extent is a stretch of a device.
type Extent struct {
	Length int64 // bytes
	Data   bool  // it may hold something else than zeros
}

// Extents says what of the range holds data; the answer covers it.
func (v *Volume) Extents(off, length int64) ([]Extent, error) {
	list, err := v.Layout(off, length)
	var out []Extent
	for _, s := range list {
		data := s.Kind != Zeros
		if k := len(out) - 1; k >= 0 && out[k].Data == data {
			out[k].Length += s.Length
		} else {
			out = append(out, Extent{s.Length, data})
		}
	}
	return out, err
}

// Layout says where the content of the range is; the answer covers it.
func (v *Volume) Layout(off, length int64) ([]Stretch, error) {
	n, err := v.clip(off, length)
	if err != nil {
		return nil, err
	}
	v.io.RLock()
	defer v.io.RUnlock()
	var out []Stretch
	for end := off + n; off < end; {
		s, err := v.stretch(off)
		if err != nil {
			return nil, err
		}
		s.Length = min(s.Length, end-off)
		off += s.Length
		if k := len(out) - 1; k >= 0 && out[k].Kind == s.Kind &&
			(s.Kind != Data || out[k].Block+uint64((out[k].Length+v.bs-1)/v.bs) == s.Block) {
			out[k].Length += s.Length
		} else {
			out = append(out, s)
		}
	}
	return out, nil
}

// stretch says what off shows, and how far at least.
func (v *Volume) stretch(off int64) (Stretch, error) {
	b := uint64(off / v.bs)
	m, err := v.lookup(b)
	if err != nil {
		return Stretch{}, err
	}
	until := int64(b+1) * v.bs
	s := Stretch{Length: until - off}
	switch {
	case m.HasData():
		s.Kind, s.Block = Data, m.Block()
	case m.Zero():
	case v.origin != nil && off < v.origin.valid:
		s.Kind, s.Length = FromOrigin, min(until, v.origin.valid)-off
	default:
		until, err = v.beyond(b, until)
		s.Length = until - off
	}
	return s, err
}

// beyond is the end of the unmapped stretch that block b, which ends at
// until, lies in, as far as that can be told in one step: a leaf without
// any mapping knows the next one that has some.
func (v *Volume) beyond(b uint64, until int64) (int64, error) {
	v.mu.Lock()
	leaf := v.maps.get(b / leafBlocks)
	known := leaf != nil && leaf.Next != 0 && len(v.pending) == 0
	v.mu.Unlock()
	if !known {
		return until, nil
	}
	fresh, err := v.svc.Leaf(v.id, b/leafBlocks)
	if err != nil || fresh.Next == 0 {
		return until, err
	}
	last := uint64(blockstore.MaxDeviceSize / v.bs)
	return int64(min(fresh.Next, last/leafBlocks+1)*leafBlocks) * v.bs, nil
}
