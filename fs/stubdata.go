package fs

import (
	"github.com/layerfs/layerfs/internal/sys"
)

// read reads at off, less than asked for only at the end of the file.
func (b *backing) read(buf []byte, off int64) (int, error) {
	if b.stub == nil {
		return sys.PRead(b.fd, buf, off)
	}
	d, err := b.data()
	if err != nil {
		return 0, err
	}
	return d.readAt(buf, off)
}

// readv reads the content of a stub into several buffers. What it has from its
// lower file alone is read there, as that file would be.
func (b *backing) readv(dst [][]byte, off int64) (done int, err error) {
	d, err := b.data()
	if err != nil {
		return 0, err
	}
	want := 0
	for _, buf := range dst {
		want += len(buf)
	}
	if d.origin != nil && d.blocks.OriginAlone(off, int64(want)) {
		if n, err := sys.PReadV(d.origin.fd, dst, off); n == want && err == nil {
			return n, nil
		}
	}
	for _, buf := range dst {
		n, err := d.readAt(buf, off+int64(done))
		done += n
		if err != nil || n < len(buf) {
			return done, err
		}
	}
	return done, nil
}

// write writes at off and returns how much was written.
func (b *backing) write(buf []byte, off int64) (n int, err error) {
	if b.stub == nil {
		return sys.PWrite(b.fd, buf, off)
	}
	err = b.change(func(d *blockFile) error {
		n, err = d.writeAt(buf, off)
		return err
	})
	if n > 0 {
		err = nil // a short write; the caller sees the error when it goes on
	}
	return n, err
}

// change changes the content of a stub.
func (b *backing) change(how func(*blockFile) error) error {
	d, err := b.data()
	if err == nil {
		err = b.stub.touch(b.fd, d)
	}
	if err != nil {
		return err
	}
	return how(d)
}

func (b *backing) truncate(size int64) error {
	if b.stub == nil {
		return sys.Ftruncate(b.fd, size)
	}
	return b.change(func(d *blockFile) error { return d.truncate(size) })
}

func (b *backing) fallocate(mode uint32, off, length int64) error {
	if b.stub == nil {
		return sys.Fallocate(b.fd, mode, off, length)
	}
	return b.change(func(d *blockFile) error { return d.fallocate(mode, off, length) })
}

func (b *backing) seek(off int64, whence int) (int64, error) {
	if b.stub == nil {
		return sys.Seek(b.fd, off, whence)
	}
	d, err := b.data()
	if err != nil {
		return 0, err
	}
	return d.seek(off, whence)
}

// sync makes data, mapping and stub durable.
func (b *backing) sync(dataOnly bool) error {
	if b.stub != nil {
		d, err := b.data()
		if err == nil {
			err = d.blocks.Flush()
		}
		if err != nil {
			return err
		}
	}
	if dataOnly {
		return sys.Fdatasync(b.fd)
	}
	return sys.Fsync(b.fd)
}

// copyTo copies a range to another open file.
func (b *backing) copyTo(off int64, dst *backing, dstOff, length int64) (int, error) {
	if b.stub == nil && dst.stub == nil {
		return sys.CopyFileRange(b.fd, off, dst.fd, dstOff, int(min(length, 1<<30)))
	}
	return copyRange(b, off, dst, dstOff, length)
}

// seekEnd returns the size of a stub's content.
func (b *backing) seekEnd() (int64, error) {
	d, err := b.data()
	if err != nil {
		return 0, err
	}
	return d.blocks.Size(), nil
}
