package volume

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/internal/errs"
)

// WriteAt writes p. What comes before an error is written, and counted.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	return v.WriteContext(context.Background(), p, off)
}

// WriteContext is WriteAt; ctx ends waiting for space, with EINTR.
func (v *Volume) WriteContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := v.clip(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	for done := int64(0); done < n; {
		k, err := v.writeInPlace(p[done:n], off+done)
		if err == nil && k == 0 {
			k, err = v.provision(ctx, p[done:n], off+done)
		}
		done += k
		if err != nil {
			return int(done), err
		}
	}
	if n < int64(len(p)) {
		return int(n), errs.New(errs.NoSpace, "the device ends at %d bytes: %w", v.Size(), unix.ENOSPC)
	}
	return int(n), nil
}

// writeInPlace writes the stretch at off that is mapped, exclusive and in
// one piece, and returns its length, 0 where there is none.
func (v *Volume) writeInPlace(p []byte, off int64) (int64, error) {
	v.io.RLock()
	defer v.io.RUnlock()
	b := uint64(off / v.bs)
	m, err := v.lookup(b)
	if err == nil && m.HasData() && !m.Exclusive() {
		m, err = v.refresh(b)
	}
	if err != nil || !m.HasData() || !m.Exclusive() {
		return 0, err
	}
	n := min(int64(len(p)), v.bs-off%v.bs)
	for i := uint64(1); n < int64(len(p)); i++ {
		next, err := v.lookup(b + i)
		if err != nil {
			return 0, err
		}
		if !next.Exclusive() || !follows(m, next, i) {
			break
		}
		n = min(int64(len(p)), n+v.bs)
	}
	if _, err := v.data.WriteAt(p[:n], int64(m.Block())*v.bs+off%v.bs); err != nil {
		return 0, err
	}
	return n, nil
}

// provision gives the first blocks of the range, which need it, data blocks
// of their own, and writes them. It returns how many bytes that covers.
func (v *Volume) provision(ctx context.Context, p []byte, off int64) (int64, error) {
	first := uint64(off / v.bs)
	last := uint64((off + int64(len(p)) - 1) / v.bs)
	last = min(last, first+maxWant-1)
	grants, err := v.reserve(ctx, int(last-first+1))
	if err != nil {
		return 0, err
	}
	v.claims.take(first, last+1)
	n, many, err := v.fill(grants, p, off)
	v.claims.drop(first)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		// The host is fuller than it seemed: wait for space like anybody.
		return n, v.hostFull(ctx)
	}
	if err == nil && many {
		err = v.push(false)
	}
	return n, err
}

// hostFull waits until the pool has a block to give, or returns its error.
func (v *Volume) hostFull(ctx context.Context) error {
	v.GiveBack()
	select {
	case <-ctx.Done():
		return unix.EINTR
	case <-time.After(100 * time.Millisecond):
	}
	grants, err := v.svc.Reserve(ctx, 1)
	if err == nil {
		v.giveUp(grants)
	}
	return err
}

// reserve takes up to n reserved blocks, at least one.
func (v *Volume) reserve(ctx context.Context, n int) ([]blockstore.Grant, error) {
	v.mu.Lock()
	if len(v.grants) == 0 {
		want := max(n, v.want)
		v.want = min(2*v.want, maxWant)
		v.mu.Unlock()
		grants, err := v.svc.Reserve(ctx, want)
		if err != nil {
			return nil, err
		}
		v.mu.Lock()
		v.grants = append(v.grants, grants...)
		v.armLocked()
	}
	v.busy = true
	n = min(n, len(v.grants))
	taken := v.grants[:n:n]
	v.grants = v.grants[n:]
	v.mu.Unlock()
	return taken, nil
}

// armLocked sees to it that tick comes.
func (v *Volume) armLocked() {
	if v.closed || v.armed {
		return
	}
	v.armed = true
	if v.timer == nil {
		v.timer = time.AfterFunc(v.every, v.tick)
		return
	}
	v.timer.Reset(v.every)
}

// giveUp puts blocks back that were not used after all.
func (v *Volume) giveUp(grants []blockstore.Grant) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, g := range grants {
		g.Zero = false
		v.grants = append(v.grants, g)
	}
}

// fill writes blocks that need provisioning, from off on, to grants. It
// stops at the first block that does not need it, or when grants are used
// up. The blocks are claimed.
func (v *Volume) fill(grants []blockstore.Grant, p []byte, off int64) (done int64, many bool, err error) {
	v.io.RLock()
	defer v.io.RUnlock()
	used := 0
	defer func() { v.giveUp(grants[used:]) }()
	for used < len(grants) && done < int64(len(p)) {
		at := off + done
		b := uint64(at / v.bs)
		m, err := v.lookup(b)
		if err != nil {
			return done, many, err
		}
		if m.HasData() && m.Exclusive() {
			break
		}
		if at%v.bs == 0 && int64(len(p))-done >= v.bs {
			k, more, err := v.fillWhole(grants[used:], p[done:], b)
			if err != nil {
				return done, many, err
			}
			used, done, many = used+k, done+int64(k)*v.bs, many || more
			continue
		}
		n := min(int64(len(p))-done, v.bs-at%v.bs)
		if err := v.fillPart(grants[used], m, p[done:done+n], at); err != nil {
			return done, many, err
		}
		many = v.assign(b, grants[used].Block, m.HasData()) || many
		used, done = used+1, done+n
	}
	return done, many, nil
}

// fillWhole writes as many whole blocks as lie together on both sides, with
// one write, and returns their number.
func (v *Volume) fillWhole(grants []blockstore.Grant, p []byte, b uint64) (k int, many bool, err error) {
	var replaces []bool
	for k < len(grants) && int64(k+1)*v.bs <= int64(len(p)) && grants[k].Block == grants[0].Block+uint64(k) {
		m, err := v.lookup(b + uint64(k))
		if err != nil {
			return 0, false, err
		}
		if m.HasData() && m.Exclusive() {
			break
		}
		replaces = append(replaces, m.HasData())
		k++
	}
	if _, err := v.data.WriteAt(p[:int64(k)*v.bs], int64(grants[0].Block)*v.bs); err != nil {
		return 0, false, err
	}
	for i, r := range replaces {
		many = v.assign(b+uint64(i), grants[i].Block, r) || many
	}
	return k, many, nil
}

// fillPart writes p, part of a block at off, and around it what the block
// showed before.
func (v *Volume) fillPart(g blockstore.Grant, m blockstore.Mapping, p []byte, off int64) error {
	base, to := off-off%v.bs, int64(g.Block)*v.bs
	blank := !m.HasData() && (m.Zero() || v.origin == nil || base >= v.origin.valid)
	if blank && (g.Zero || v.skip) {
		_, err := v.data.WriteAt(p, to+off-base)
		return err
	}
	buf := getPiece()
	defer putPiece(buf)
	for at := int64(0); at < v.bs; at += pieceSize {
		piece := (*buf)[:min(pieceSize, v.bs-at)]
		if err := v.old(piece, m, base, at, blank); err != nil {
			return err
		}
		overlay(piece, base+at, p, off)
		if _, err := v.data.WriteAt(piece, to+at); err != nil {
			return err
		}
	}
	return nil
}

// old fills piece with what the block at base showed at offset at in it.
func (v *Volume) old(piece []byte, m blockstore.Mapping, base, at int64, blank bool) error {
	switch {
	case blank:
		clear(piece)
		return nil
	case m.HasData():
		_, err := v.data.ReadAt(piece, int64(m.Block())*v.bs+at)
		return err
	}
	return v.origin.read(piece, base+at)
}

// overlay copies what of src, which is at srcOff, falls on dst, at dstOff.
func overlay(dst []byte, dstOff int64, src []byte, srcOff int64) {
	if d := srcOff - dstOff; d >= 0 {
		if d < int64(len(dst)) {
			copy(dst[d:], src)
		}
	} else if -d < int64(len(src)) {
		copy(dst, src[-d:])
	}
}

// pieceSize bounds the memory that copying a large block takes.
const pieceSize = 1 << 20

var pieces = sync.Pool{New: func() any { b := make([]byte, blockstore.MinBlockSize, pieceSize); return &b }}

func getPiece() *[]byte {
	buf := pieces.Get().(*[]byte)
	*buf = (*buf)[:cap(*buf)]
	return buf
}

func putPiece(buf *[]byte) { pieces.Put(buf) }
