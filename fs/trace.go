package fs

import (
	"fmt"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
)

// Layout says where the content of a file is that was copied up by blocks.
type Layout struct {
	Pool   string  `json:"pool"`
	Device string  `json:"device"`
	Origin string  `json:"origin,omitempty"` // the lower file, as it was called
	Size   int64   `json:"size"`             // bytes
	Copied int64   `json:"copied"`           // bytes in the pool
	Parts  []Range `json:"parts"`
	More   bool    `json:"more,omitempty"` // there are more parts than are told
}

// Range is a part of such a file.
type Range struct {
	Offset int64  `json:"offset"`          // bytes
	Length int64  `json:"length"`          // bytes
	In     string `json:"in"`              // pool, lower or zeros
	Block  uint64 `json:"block,omitempty"` // the first data block in the pool
}

// manyParts is how many parts a trace tells.
const manyParts = 1000

// traceStub completes the step of a file that was copied up by blocks.
func (f *FS) traceStub(dir *branches.Dir, name string, res *branches.Resolution, step *TraceStep) {
	at, err := acquire(dir, res.Where, name)
	if err != nil {
		return
	}
	defer at.release()
	b := res.Where.Branch
	rec, ok, err := b.StubAt(at.fd, name, &res.Stat)
	if err == nil && !ok {
		return
	}
	if err == nil {
		step.Why += ", copied up by blocks"
		fd, e := sys.OpenUntouched(at.fd, name, 0)
		if err = e; err == nil {
			step.Blocks, err = f.layout(b, rec, fd, step.Name)
		}
	}
	if err != nil {
		step.Why += fmt.Sprintf("; its content cannot be found: %v", err)
	}
}

// layout describes the stub that is open at fd, which it closes.
func (f *FS) layout(b *branches.Branch, rec stub.Record, fd int, name string) (*Layout, error) {
	back := f.newBacking(fd, false)
	back.stub = &stubFile{fs: f, branch: b, write: b.Writable() && !f.opts.ReadOnly, path: name, rec: rec}
	defer back.release()
	d, err := back.data()
	if err != nil {
		return nil, err
	}
	l := &Layout{Pool: d.key.pool.name, Device: d.key.device, Size: d.blocks.Size(), Parts: []Range{}}
	if err := d.key.pool.with(func(s stub.Store) error {
		dev, err := s.Info(d.key.device)
		if dev.Origin != nil {
			l.Origin = dev.Origin.Path
		}
		return err
	}); err != nil {
		return nil, err
	}
	list, err := d.blocks.Layout(0, l.Size)
	if err != nil {
		return nil, err
	}
	off := int64(0)
	for _, s := range list {
		r := Range{off, s.Length, [...]string{"zeros", "lower", "pool"}[s.Kind], s.Block}
		if off += s.Length; s.Kind == stub.Data {
			l.Copied += s.Length
		}
		if l.More = l.More || len(l.Parts) == manyParts; !l.More {
			l.Parts = append(l.Parts, r)
		}
	}
	return l, nil
}

func (l *Layout) lines() []string {
	out := []string{
		fmt.Sprintf("    device %s of pool %s", l.Device, l.Pool),
		fmt.Sprintf("    %d of %d bytes in the pool; over %s", l.Copied, l.Size, l.Origin),
	}
	for _, r := range l.Parts {
		line := fmt.Sprintf("    %14d %+14d  %s", r.Offset, r.Length, r.In)
		if r.In == "pool" {
			line += fmt.Sprintf(", data block %d", r.Block)
		}
		out = append(out, line)
	}
	if l.More {
		out = append(out, "    ...")
	}
	return out
}
