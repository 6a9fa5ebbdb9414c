package devicemapper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/driver/devices"
)

// What dm.directlvm_device becomes, as Docker had it with its own name.
const (
	volumeGroup = "layerfs"
	thinPool    = "thinpool"
	thinMeta    = "thinpoolmeta"
	lvmProfile  = "layerfs-thinpool"
	lvmPool     = volumeGroup + "-" + thinPool // in device-mapper
)

// lvmKey is the record that an empty device is being made a pool: after a crash it is
// begun anew.
const lvmKey = "lvm"

func lvm(name string, args ...string) error {
	if err := sys.Step("exec " + name); err != nil {
		return err
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return errs.New(errs.Unsupported, "dm.directlvm_device needs %s (Debian package lvm2)", name)
	}
	if err != nil {
		said := strings.Join(strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' }), "; ")
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, said)
	}
	return nil
}

// makeLVM makes a volume group of the device, and in it a thin pool, and returns its name
// in device-mapper.
func (p *Pool) makeLVM() (string, error) {
	device := p.opts.DirectLVMDevice
	var begun string
	err := p.state.View(func(t driver.Records) error { _, err := t.Get(lvmKey, &begun); return err })
	if err != nil {
		return "", err
	}
	if begun == device {
		_ = lvm("vgremove", "-f", "-y", volumeGroup) // whatever there is of it
		_ = lvm("pvremove", "-f", "-y", device)
	} else if err := checkBlank(device, p.opts.DirectLVMForce); err != nil {
		return "", err
	}
	if err := p.state.Update(func(t driver.Records) error { return t.Put(lvmKey, device) }); err != nil {
		return "", err
	}
	for _, step := range lvmSteps(p.opts) {
		if err := lvm(step[0], step[1:]...); err != nil {
			return "", fmt.Errorf("making a thin pool of %s: %w", device, err)
		}
	}
	if err := writeProfile(p.opts); err != nil {
		return "", err
	}
	if err := lvm("lvchange", "--metadataprofile", lvmProfile, volumeGroup+"/"+thinPool); err != nil {
		return "", err
	}
	return lvmPool, nil
}

func lvmSteps(o devices.Options) [][]string {
	extents := func(percent uint64) string { return fmt.Sprintf("%d%%VG", percent) }
	return [][]string{
		{"pvcreate", "-f", "-y", o.DirectLVMDevice},
		{"vgcreate", volumeGroup, o.DirectLVMDevice},
		{"lvcreate", "-y", "--wipesignatures", "y", "-n", thinPool, volumeGroup, "--extents", extents(o.ThinpPercent)},
		{"lvcreate", "-y", "--wipesignatures", "y", "-n", thinMeta, volumeGroup, "--extents", extents(o.ThinpMetaPercent)},
		{"lvconvert", "-y", "--zero", "n", "-c", "512K", "--thinpool", volumeGroup + "/" + thinPool, "--poolmetadata", volumeGroup + "/" + thinMeta},
	}
}

// writeProfile says when LVM's monitor makes the pool larger.
func writeProfile(o devices.Options) error {
	const dir = "/etc/lvm/profile"
	if err := sys.MakeDirs(dir, 0755); err != nil {
		return err
	}
	text := fmt.Sprintf("activation {\n\tthin_pool_autoextend_threshold=%d\n\tthin_pool_autoextend_percent=%d\n}\n", o.AutoExtendThreshold, o.AutoExtendPercent)
	return sys.WriteFile(filepath.Join(dir, lvmProfile+".profile"), []byte(text), 0644)
}

// checkBlank refuses a device on which something is, in Docker's words.
func checkBlank(device string, force bool) error {
	if _, err := os.Stat(device); err != nil {
		return errs.New(errs.NotFound, "devmapper: dm.directlvm_device: %w", err)
	}
	if lvm("pvdisplay", device) == nil {
		return errs.New(errs.Busy, "device '%s' is already part of a volume group", device)
	}
	out, err := exec.Command("blkid", "-p", "-s", "TYPE", "-o", "value", device).Output()
	if kind := strings.TrimSpace(string(out)); err == nil && kind != "" && !force {
		return errs.New(errs.Busy, "device '%s' has a filesystem (%s), use dm.directlvm_device_force=true if you want to wipe it", device, kind)
	}
	return nil
}
