package devices

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// baseName is the base device's.
const baseName = "base"

const baseFile = "base.json"

// base is what base.json says of the base device.
type base struct {
	Size int64  `json:"size"` // bytes
	FS   string `json:"fs"`
}

func (d *Driver) basePath() string { return filepath.Join(d.home, baseFile) }

// openBase makes the base device, or makes it larger when dm.basesize says so.
func (d *Driver) openBase() error {
	return d.locked(func() error {
		b, err := d.readBase()
		switch {
		case errors.Is(err, os.ErrNotExist):
			return d.makeBase()
		case err != nil:
			return err
		case d.opts.BaseSizeSet && d.opts.BaseSize < b.Size:
			return errs.New(errs.Usage, "devmapper: Base device size cannot be smaller than %d: dm.basesize cannot make it smaller", b.Size)
		}
		d.opts.FS = b.FS // of which all devices are
		if d.opts.BaseSizeSet && d.opts.BaseSize > b.Size {
			return d.growBase(b)
		}
		d.opts.BaseSize = b.Size
		return nil
	})
}

func (d *Driver) readBase() (b base, err error) {
	data, err := os.ReadFile(d.basePath())
	if err != nil {
		return b, err
	}
	if err := json.Unmarshal(data, &b); err != nil {
		return b, errs.New(errs.Corrupt, "%s is damaged: %w", d.basePath(), err)
	}
	return b, nil
}

func (d *Driver) writeBase(b base) error {
	data, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return writeFile(d.basePath(), data)
}

// writeFile gives a file its content, whole or not at all, also after a power cut.
func writeFile(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = sys.RenamePath(tmp, path)
	}
	return err
}

// CopyBase has the driver in the directory to know the base device that the one in from
// has made.
func CopyBase(from, to string) error {
	data, err := os.ReadFile(filepath.Join(from, baseFile))
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(to, baseFile), data)
}

// makeBase makes the base device. What a crash has left of one goes first.
func (d *Driver) makeBase() error {
	if err := d.discardBase(); err != nil {
		return err
	}
	if err := d.pool.Make(baseName, d.opts.BaseSize); err != nil {
		return err
	}
	err := d.onBase(func(path, at string) error {
		if err := d.fs.make(path); err != nil {
			return err
		}
		if err := d.fs.mountWhole(path, at); err != nil {
			return err
		}
		root := filepath.Join(at, rootfsName)
		return errors.Join(sys.MakeDir(root, 0755), os.Chmod(root, 0755), d.fs.unmount(at))
	})
	if err != nil {
		return errors.Join(fmt.Errorf("the base device: %w", err), d.discardBase())
	}
	return d.writeBase(base{d.opts.BaseSize, d.opts.FS})
}

func (d *Driver) discardBase() error {
	if err := d.unmountBase(); err != nil {
		return err
	}
	return errors.Join(d.pool.Detach(baseName), d.pool.Remove(baseName))
}

// unmountBase ends a mount of the base device by a command that died.
func (d *Driver) unmountBase() error {
	at, _ := d.fs.mounted(d.pool.Path(baseName), d.point(baseName))
	if at == "" {
		return nil
	}
	return d.fs.unmount(at)
}

// growBase makes the base device larger; trees that are there keep their size. The
// size is written down last: growing again does no harm.
func (d *Driver) growBase(b base) error {
	if err := d.unmountBase(); err != nil {
		return err
	}
	if err := d.pool.Grow(baseName, d.opts.BaseSize); err != nil {
		return err
	}
	err := d.onBase(func(path, at string) error { return d.fs.grow(path, at) })
	if err != nil {
		return fmt.Errorf("growing the base device: %w", err)
	}
	return d.writeBase(base{d.opts.BaseSize, b.FS})
}

// onBase calls use with where the base device is attached and may be mounted.
func (d *Driver) onBase(use func(path, at string) error) error {
	at := d.point(baseName)
	if err := sys.MakeDirs(at, 0700); err != nil {
		return err
	}
	defer sys.RemovePath(at)
	path, err := d.pool.Attach(baseName)
	if err != nil {
		return err
	}
	return errors.Join(use(path, at), d.pool.Detach(baseName))
}
