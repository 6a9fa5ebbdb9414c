package stacked

import (
	"strconv"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/kernelbackend"
	"github.com/layerfs/layerfs/layers/driver"
)

// Overlay mounts by the kernel's overlay. Directories of lowers are renamed with
// redirects where the kernel can; otherwise programs get EXDEV and copy.
type Overlay struct{}

// Mount implements Mounter.
func (Overlay) Mount(s Stack, at string) error {
	return kernelbackend.MountOverlay(kernelbackend.Overlay{
		Lowers: s.Lowers, Upper: s.Upper, Work: s.Work, Mountpoint: at, ReadOnly: s.ReadOnly,
		UserXattr: s.UserXattr, RedirectDir: !s.UserXattr, Volatile: s.Volatile,
	})
}

// Unmount implements Mounter. A mount that has gone by other means is none.
func (Overlay) Unmount(at string) error {
	err := kernelbackend.UnmountOverlay(at, false)
	if errs.Of(err) == errs.NotFound {
		return nil
	}
	return err
}

// Info implements Mounter, with what Docker said of overlay2.
func (Overlay) Info(d *Driver) []driver.Field {
	return []driver.Field{
		{Name: "Backing Filesystem", Value: driver.BackingFilesystem(d.Home())},
		{Name: "Supports d_type", Value: "true"}, // the kernel refuses others
		{Name: "Using metacopy", Value: "false"},
		{Name: "Native Overlay Diff", Value: "true"}, // redirects are understood
		{Name: "userxattr", Value: strconv.FormatBool(d.UserXattr())},
	}
}
