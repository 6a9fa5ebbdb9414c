package main

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"time"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/client"
	"github.com/layerfs/layerfs/blockstore/fusefile"
	"github.com/layerfs/layerfs/blockstore/nbd"
	"github.com/layerfs/layerfs/internal/control"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/fusedev"
)

// poolServe is `layerfs pool serve`: it stays until a signal.
func poolServe(args []string) error {
	c := newCommand("pool serve", false)
	address := c.String("nbd", "", "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	path, ok := strings.CutPrefix(*address, "unix:")
	if !ok || path == "" {
		return errs.New(errs.Usage, "pool serve: --nbd unix:PATH is needed: the socket to listen on")
	}
	signals := catchSignals()
	raiseLimit()
	return withPool(c.Arg(0), func(p *client.Client) error {
		l, err := listenUnix(path)
		if err != nil {
			return err
		}
		s := nbd.New(nbdExports{p})
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(l) }()
		select {
		case err := <-ended:
			return err
		case <-signals:
			return s.Close()
		}
	})
}

// listenUnix listens on a socket that only its owner can use. One that
// nobody listens on any more is replaced, a live one is not.
func listenUnix(path string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, errs.New(errs.Busy, "somebody listens on %s", path)
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, errs.New(errs.Failed, "%s exists and is not a socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o600)
}

// nbdExports offers a pool's devices to package nbd.
type nbdExports struct{ p *client.Client }

func (e nbdExports) List() ([]string, error) {
	list, err := e.p.Devices()
	names := make([]string, 0, len(list))
	for _, d := range list {
		names = append(names, d.Name)
	}
	return names, err
}

func (e nbdExports) Open(name string) (nbd.Export, error) {
	d, err := e.p.Volume(name, nil)
	if err != nil {
		return nil, err
	}
	return nbdExport{d}, nil
}

type nbdExport struct{ *client.Device }

func (e nbdExport) Extents(off, length int64) ([]nbd.Extent, error) {
	list, err := e.Device.Extents(off, length)
	out := make([]nbd.Extent, len(list))
	for i, x := range list {
		out[i] = nbd.Extent(x)
	}
	return out, err
}

// poolMount is `layerfs pool mount`.
func poolMount(args []string) error {
	c := newCommand("pool mount", false)
	foreground := c.BoolP("foreground", "f", false, "")
	allowOther := c.Bool("allow-other", os.Geteuid() == 0, "")
	if done, err := c.parse(args, 2, 2); done || err != nil {
		return err
	}
	mountpoint, err := absolute(c.Arg(1))
	if err != nil {
		return err
	}
	return runMount(mountpoint, *foreground, func(ready func()) error {
		return servePool(c.Arg(0), mountpoint, *foreground, *allowOther, ready)
	})
}

// servePool mounts a pool's devices as files and serves them.
func servePool(dir, mountpoint string, foreground, allowOther bool, ready func()) error {
	signals := catchSignals()
	raiseLimit()
	logger := log.New(io.Discard, "", 0)
	if foreground {
		logger = log.New(os.Stderr, "layerfs: ", log.LstdFlags|log.Lmsgprefix)
	}
	return withPool(dir, func(p *client.Client) error {
		st, err := p.Status()
		if err != nil {
			return err
		}
		f := fusefile.New(fileDevices{p, st.BlockSize}, fusefile.Options{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Log: logger})
		conn, err := f.Mount(mountpoint, dir, allowOther)
		if err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- conn.Serve(f, f.FuseOptions()) }()
		channel := listenFor(mountpoint, p, logger)
		if err := os.Chdir("/"); err != nil {
			logger.Print(err)
		}
		ready()
		err = waitUnmount(mountpoint, ended, signals)
		if channel != nil {
			channel.Close()
		}
		conn.Close()
		f.Close()
		return err
	})
}

// waitUnmount returns when the mount has ended, by itself or by a signal.
func waitUnmount(mountpoint string, ended chan error, signals chan os.Signal) error {
	select {
	case err := <-ended:
		return err
	case <-signals:
	}
	if err := fusedev.Unmount(mountpoint, true); err != nil && errs.Of(err) != errs.NotFound {
		return err
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(abandonTime):
		return nil
	}
}

// fileDevices offers a pool's devices to package fusefile.
type fileDevices struct {
	p         *client.Client
	blockSize int64
}

func (d fileDevices) entry(i blockstore.DeviceInfo) fusefile.Entry {
	return fusefile.Entry{Name: i.Name, ID: i.ID, Size: i.Size, Used: int64(i.Mapped) * d.blockSize}
}

func (d fileDevices) List() ([]fusefile.Entry, error) {
	list, err := d.p.Devices()
	out := make([]fusefile.Entry, len(list))
	for i, info := range list {
		out[i] = d.entry(info)
	}
	return out, err
}

func (d fileDevices) Lookup(name string) (fusefile.Entry, error) {
	info, err := d.p.Device(name)
	return d.entry(info), err
}

func (d fileDevices) Open(name string) (fusefile.Device, error) {
	v, err := d.p.Volume(name, nil)
	if err != nil {
		return nil, err
	}
	return fileDevice{v}, nil
}

func (d fileDevices) BlockSize() int { return int(d.blockSize) }

func (d fileDevices) Free() (total, available int64) {
	st, err := d.p.Status()
	if err != nil {
		return 0, 0
	}
	return int64(st.Blocks) * st.BlockSize, int64(st.Available) * st.BlockSize
}

type fileDevice struct{ *client.Device }

func (d fileDevice) Extents(off, length int64) ([]fusefile.Extent, error) {
	list, err := d.Device.Extents(off, length)
	out := make([]fusefile.Extent, len(list))
	for i, x := range list {
		out[i] = fusefile.Extent(x)
	}
	return out, err
}

func (d fileDevice) WriteAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	return d.WriteContext(ctx, p, off)
}

// listenFor opens the channel by which `layerfs umount` finds the daemon and
// `layerfs status` asks it.
func listenFor(mountpoint string, p *client.Client, logger *log.Logger) *control.Listener {
	dev, err := control.Dev(mountpoint)
	if err == nil {
		var l *control.Listener
		if l, err = control.Listen(dev, poolAnswer(p)); err == nil {
			return l
		}
	}
	logger.Print(err)
	return nil
}

// poolAnswer answers commands about the mount of a pool.
func poolAnswer(p *client.Client) control.Handler {
	return func(cmd string, _ json.RawMessage, _ []*os.File) (any, error) {
		if cmd == "status" {
			return p.Status()
		}
		return nil, errs.New(errs.Unsupported, "this is the mount of a pool, which knows no %q", cmd)
	}
}
