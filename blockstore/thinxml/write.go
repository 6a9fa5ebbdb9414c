package thinxml

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Writer writes the metadata of a pool. It accepts what Read does and nothing
// else, so that all that is exported can be imported again: metadata that
// breaks an invariant is an error of class errs.Corrupt. After any error the
// Writer is unusable, and each method, Close too, returns that error.
type Writer struct {
	out    *bufio.Writer
	sb     Superblock
	device Device   // the one being written
	inside bool     // there is such a one
	next   uint64   // the smallest id that the next device may have
	done   progress // of device
	run    Range    // mapped but not written yet; Length 0: nothing
	err    error
}

var errClosed = errors.New("the thinxml.Writer is closed")

// NewWriter begins the XML of a pool on w, which stays the caller's to close.
// Output is buffered until Close.
func NewWriter(w io.Writer, sb Superblock) (*Writer, error) {
	if err := sb.check(); err != nil {
		return nil, fmt.Errorf("thin XML: %w", err)
	}
	x := &Writer{out: bufio.NewWriterSize(w, bufSize), sb: sb}
	b := append(x.out.AvailableBuffer(), `<superblock uuid="`...)
	b = append(append(b, sb.UUID...), '"')
	b = appendAttr(b, ` time="`, uint64(sb.Time))
	b = appendAttr(b, ` transaction="`, sb.Transaction)
	b = appendAttr(b, ` flags="`, uint64(sb.Flags))
	b = appendAttr(b, ` version="`, uint64(sb.Version))
	b = appendAttr(b, ` data_block_size="`, uint64(sb.DataBlockSize))
	b = appendAttr(b, ` nr_data_blocks="`, sb.DataBlocks)
	x.write(append(b, ">\n"...))
	return x, x.err
}

// Device ends the previous device and begins another, whose id must be larger:
// that is the order of thin_dump.
func (x *Writer) Device(d Device) error {
	x.endDevice()
	if x.err == nil && uint64(d.ID) < x.next {
		x.err = fmt.Errorf("thin XML: device %d after %d: devices are written in ascending order of their ids", d.ID, x.next-1)
	}
	x.check(x.sb.checkDevice(d))
	if x.err != nil {
		return x.err
	}
	x.device, x.inside, x.next, x.done = d, true, uint64(d.ID)+1, progress{}
	b := appendAttr(x.out.AvailableBuffer(), `  <device dev_id="`, uint64(d.ID))
	b = appendAttr(b, ` mapped_blocks="`, d.MappedBlocks)
	b = appendAttr(b, ` transaction="`, d.Transaction)
	b = appendAttr(b, ` creation_time="`, uint64(d.CreationTime))
	b = appendAttr(b, ` snap_time="`, uint64(d.SnapTime))
	return x.write(append(b, ">\n"...))
}

// Map adds a mapping to the device that was begun last. A range that continues
// the one before becomes part of it: single blocks may be passed as they come.
func (x *Writer) Map(r Range) error {
	if x.err == nil && !x.inside {
		x.err = errors.New("thin XML: a mapping outside of any device")
	}
	if x.err != nil {
		return x.err
	}
	if err := x.done.add(&x.sb, r); err != nil {
		x.check(fmt.Errorf("device %d: %w", x.device.ID, err))
		return x.err
	}
	if x.run.Length > 0 && r.continues(x.run) {
		x.run.Length += r.Length
		return nil
	}
	x.writeRun()
	x.run = r
	return x.err
}

// Close ends the XML and writes out what is buffered.
func (x *Writer) Close() error {
	x.endDevice()
	x.write([]byte("</superblock>\n"))
	if x.err != nil {
		return x.err
	}
	x.err = errClosed
	if err := x.out.Flush(); err != nil {
		x.err = writeError(err)
		return x.err
	}
	return nil
}

func (x *Writer) endDevice() {
	if x.err != nil || !x.inside {
		return
	}
	x.check(x.done.finish(x.device))
	x.writeRun()
	x.write([]byte("  </device>\n"))
	x.inside = false
}

// writeRun writes the mappings that were held back to be merged. thin_dump
// does the same (add_mapping in metadata_dumper.cc).
func (x *Writer) writeRun() {
	r := x.run
	x.run = Range{}
	b := x.out.AvailableBuffer()
	switch r.Length {
	case 0:
		return
	case 1:
		b = appendAttr(b, `    <single_mapping origin_block="`, r.Origin)
		b = appendAttr(b, ` data_block="`, r.Data)
	default:
		b = appendAttr(b, `    <range_mapping origin_begin="`, r.Origin)
		b = appendAttr(b, ` data_begin="`, r.Data)
		b = appendAttr(b, ` length="`, r.Length)
	}
	b = appendAttr(b, ` time="`, uint64(r.Time))
	x.write(append(b, "/>\n"...))
}

// appendAttr appends a number to the beginning of its attribute.
func appendAttr(b []byte, begin string, n uint64) []byte {
	return append(strconv.AppendUint(append(b, begin...), n, 10), '"')
}

func (x *Writer) write(b []byte) error {
	if x.err == nil {
		if _, err := x.out.Write(b); err != nil {
			x.err = writeError(err)
		}
	}
	return x.err
}

func writeError(err error) error { return fmt.Errorf("writing thin XML: %w", err) }

// check keeps the first complaint about the metadata.
func (x *Writer) check(err error) {
	if x.err == nil && err != nil {
		x.err = fmt.Errorf("thin XML: %w", err)
	}
}
