package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/client"
	"github.com/layerfs/layerfs/blockstore/volume"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/units"
)

var thinCommands = map[string]func(args []string) error{
	"create": thinCreate, "snap": thinSnap, "ls": thinList, "rm": thinRemove, "resize": thinResize, "status": thinStatus,
	"delta": thinDelta, "trace": thinTrace, "read": thinRead, "write": thinWrite,
}

func cmdThin(args []string) error { return subcommand("thin", thinCommands, args) }

// deviceSize reads the size of a device to be made.
func deviceSize(s string) (int64, error) {
	size, err := parseSize(s)
	if err == nil && (size < blockstore.MinDeviceSize || size > blockstore.MaxDeviceSize || size%blockstore.SectorSize != 0) {
		err = errs.New(errs.Usage, "device size %s: must be 1M to 64T, in whole sectors of 512 bytes", s)
	}
	return size, err
}

func thinCreate(args []string) error {
	c := newCommand("thin create", false)
	size := c.String("size", "", "")
	origin := c.String("origin", "", "")
	if done, err := c.parse(args, 2, 2); done || err != nil {
		return err
	}
	spec := blockstore.NewDevice{Name: c.Arg(1)}
	if *origin != "" {
		o, err := identify(*origin)
		if err != nil {
			return err
		}
		spec.Origin, spec.Size = o, max(o.Size, blockstore.MinDeviceSize)
	}
	if *size != "" {
		n, err := deviceSize(*size)
		if err != nil {
			return err
		}
		spec.Size = n
	} else if *origin == "" {
		return errs.New(errs.Usage, "thin create: --size is missing, such as --size 10G")
	}
	return withPool(c.Arg(0), func(p *client.Client) error {
		_, err := p.Create(spec)
		return err
	})
}

func identify(path string) (*blockstore.Origin, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(abs)
	if err != nil {
		return nil, fmt.Errorf("external origin: %w", err)
	}
	defer f.Close()
	return volume.Identify(f)
}

func thinSnap(args []string) error {
	c := newCommand("thin snap", false)
	if done, err := c.parse(args, 3, 3); done || err != nil {
		return err
	}
	return withPool(c.Arg(0), func(p *client.Client) error {
		_, err := p.Create(blockstore.NewDevice{Name: c.Arg(2), Of: c.Arg(1)})
		return err
	})
}

func thinList(args []string) error {
	c := newCommand("thin ls", true)
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	return withSettled(c.Arg(0), func(p *client.Client) error {
		list, err := p.Devices()
		if err != nil {
			return err
		}
		st, err := p.Status()
		if err != nil {
			return err
		}
		if c.json {
			out := make([]deviceJSON, len(list))
			for i, d := range list {
				out[i] = inBytes(d, st.BlockSize)
			}
			return printJSON(out)
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tNAME\tSIZE\tMAPPED\tEXCLUSIVE\tPARENT")
		for _, d := range list {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", d.ID, d.Name, units.Decimal(d.Size),
				units.Decimal(int64(d.Mapped)*st.BlockSize), units.Decimal(int64(d.Exclusive)*st.BlockSize), dash(d.Parent))
		}
		return w.Flush()
	})
}

// deviceJSON is a device as listings show it: all amounts in bytes, and the
// blocks besides.
type deviceJSON struct {
	blockstore.DeviceInfo
	Mapped          int64  `json:"mapped"`
	Exclusive       int64  `json:"exclusive"`
	MappedBlocks    uint64 `json:"mapped_blocks"`
	ExclusiveBlocks uint64 `json:"exclusive_blocks"`
}

func inBytes(d blockstore.DeviceInfo, blockSize int64) deviceJSON {
	return deviceJSON{d, int64(d.Mapped) * blockSize, int64(d.Exclusive) * blockSize, d.Mapped, d.Exclusive}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// busyTime is how long a command waits for a device in use. The kernel tells
// the daemon of a mount that a file was closed only after close(2) has
// returned, and so do many clients of NBD.
const busyTime = time.Second

// whileBusy repeats try for a moment as long as the device is in use.
func whileBusy(try func() error) error {
	for end := time.Now().Add(busyTime); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if errs.Of(err) != errs.Busy || time.Now().After(end) {
			return err
		}
	}
}

func thinRemove(args []string) error {
	c := newCommand("thin rm", false)
	if done, err := c.parse(args, 2, 2); done || err != nil {
		return err
	}
	return withPool(c.Arg(0), func(p *client.Client) error {
		return whileBusy(func() error { return p.Delete(c.Arg(1)) })
	})
}

func thinResize(args []string) error {
	c := newCommand("thin resize", false)
	shrink := c.Bool("shrink", false, "")
	if done, err := c.parse(args, 3, 3); done || err != nil {
		return err
	}
	size, err := deviceSize(c.Arg(2))
	if err != nil {
		return err
	}
	return withPool(c.Arg(0), func(p *client.Client) error {
		d, err := p.Device(c.Arg(1))
		if err != nil {
			return err
		}
		if size < d.Size && !*shrink {
			return errs.New(errs.Usage, "thin resize: %s is smaller than the %s that %q has; what is beyond would be lost (--shrink does it)", units.Decimal(size), units.Decimal(d.Size), d.Name)
		}
		return whileBusy(func() error { return p.Resize(c.Arg(1), size) })
	})
}

// thinStatus prints the status line of the kernel's thin target, or JSON.
func thinStatus(args []string) error {
	c := newCommand("thin status", true)
	if done, err := c.parse(args, 2, 2); done || err != nil {
		return err
	}
	return withSettled(c.Arg(0), func(p *client.Client) error {
		d, err := p.Device(c.Arg(1))
		if err != nil {
			return err
		}
		st, err := p.Status()
		if err != nil {
			return err
		}
		if c.json {
			return printJSON(inBytes(d, st.BlockSize))
		}
		perBlock := uint64(st.BlockSize / blockstore.SectorSize)
		highest := "-"
		if d.Highest >= 0 {
			highest = fmt.Sprint((uint64(d.Highest)+1)*perBlock - 1)
		}
		fmt.Printf("0 %d thin %d %s\n", d.Size/blockstore.SectorSize, d.Mapped*perBlock, highest)
		return nil
	})
}

func thinDelta(args []string) error {
	c := newCommand("thin delta", true)
	if done, err := c.parse(args, 3, 3); done || err != nil {
		return err
	}
	return withPool(c.Arg(0), func(p *client.Client) error {
		list, err := p.Delta(c.Arg(1), c.Arg(2))
		if err != nil {
			return err
		}
		if c.json {
			if list == nil {
				list = []blockstore.Difference{}
			}
			return printJSON(list)
		}
		for _, d := range list {
			fmt.Printf("%s %d+%d\n", d.Kind, d.Begin, d.Length)
		}
		return nil
	})
}

func thinTrace(args []string) error {
	c := newCommand("thin trace", true)
	if done, err := c.parse(args, 3, 3); done || err != nil {
		return err
	}
	block, err := strconv.ParseUint(c.Arg(2), 0, 64)
	if err != nil {
		return errs.New(errs.Usage, "block %q: must be a number, such as 1103 or 0x44f", c.Arg(2))
	}
	return withPool(c.Arg(0), func(p *client.Client) error {
		r, err := p.Trace(c.Arg(1), block)
		switch {
		case err != nil:
			return err
		case c.json:
			return printJSON(r)
		case !r.Mapped:
			fmt.Printf("virtual block %#x of %s is not mapped\n", block, c.Arg(1))
			return nil
		}
		who := fmt.Sprintf("device %d, which is gone", r.Owner)
		if r.Name != "" {
			who = fmt.Sprintf("%s (device %d)", r.Name, r.Owner)
		}
		fmt.Printf("virtual block %#x of %s is data block %#x, first written by %s\n", block, c.Arg(1), r.Block, who)
		return nil
	})
}

// extent reads OFFSET and LENGTH.
func extent(c *command) (off, length int64, err error) {
	if off, err = parseSize(c.Arg(2)); err == nil {
		length, err = parseSize(c.Arg(3))
	}
	return off, length, err
}

const copyPiece = 1 << 20

func thinRead(args []string) error {
	c := newCommand("thin read", false)
	if done, err := c.parse(args, 4, 4); done || err != nil {
		return err
	}
	off, length, err := extent(c)
	if err != nil {
		return err
	}
	return withPool(c.Arg(0), func(p *client.Client) error {
		for length > 0 {
			n := min(length, copyPiece)
			data, err := p.ReadAt(c.Arg(1), off, int(n))
			if err != nil {
				return err
			}
			if _, err := os.Stdout.Write(data); err != nil {
				return err
			}
			if int64(len(data)) < n {
				return errs.New(errs.Failed, "the device ends at %d", off+int64(len(data)))
			}
			off, length = off+n, length-n
		}
		return nil
	})
}

// thinWrite writes in order, so that all that precedes an error is written,
// and ends with a flush.
func thinWrite(args []string) error {
	c := newCommand("thin write", false)
	if done, err := c.parse(args, 4, 4); done || err != nil {
		return err
	}
	off, length, err := extent(c)
	if err != nil {
		return err
	}
	return withPool(c.Arg(0), func(p *client.Client) error {
		var v *client.Device
		err := whileBusy(func() (err error) { v, err = p.Volume(c.Arg(1), nil); return err })
		if err != nil {
			return err
		}
		err = writeFrom(os.Stdin, v, off, length)
		return errors.Join(err, v.Close())
	})
}

func writeFrom(in io.Reader, v io.WriterAt, off, length int64) error {
	buf := make([]byte, copyPiece)
	for done := int64(0); done < length; {
		n, err := io.ReadFull(in, buf[:min(length-done, copyPiece)])
		if n > 0 {
			if _, err := v.WriteAt(buf[:n], off+done); err != nil {
				return err
			}
		}
		done += int64(n)
		if err != nil {
			return errs.New(errs.Failed, "the input ended after %d of %d bytes: %w", done, length, err)
		}
	}
	return nil
}
