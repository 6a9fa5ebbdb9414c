package layers

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/kernelbackend"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/driver/devicemapper"
	"github.com/layerfs/layerfs/layers/driver/devices"
	"github.com/layerfs/layerfs/layers/driver/stacked"
	"github.com/layerfs/layerfs/layers/driver/whole"
)

// auto is the driver that is chosen.
const auto = "auto"

// Names of drivers, part of the format: a store remembers its driver.
const (
	Overlay = "overlay"
	Btrfs   = "btrfs"
	Union   = "union"
	VFS     = "vfs"
	Thin    = "thin"

	DeviceMapper = "devicemapper"
)

// drivers are those that auto looks at, the best first. VFS works everywhere, so what
// comes after it is there for those who ask for it.
var drivers = []struct {
	name  string
	needs string // of kernelbackend.Probe; "" for nothing
	open  func(home string, state driver.State, cfg Config) (driver.Driver, error)
}{
	{Overlay, kernelbackend.OverlayHere, func(home string, _ driver.State, _ Config) (driver.Driver, error) {
		return stacked.New(home, stacked.Overlay{})
	}},
	{Btrfs, kernelbackend.Btrfs, func(home string, _ driver.State, _ Config) (driver.Driver, error) { return whole.NewBtrfs(home) }},
	{Union, kernelbackend.FUSE, func(home string, _ driver.State, cfg Config) (driver.Driver, error) { return newUnion(home, cfg) }},
	{VFS, "", func(home string, _ driver.State, _ Config) (driver.Driver, error) { return whole.NewVFS(home) }},
	{Thin, "", newThin},
	{DeviceMapper, "", newDeviceMapper},
}

// aliases are the names that other programs have for drivers.
var aliases = map[string]string{"": auto, "overlay2": Overlay, "aufs": Union}

// canonicalDriver returns the name of a driver as the store writes it.
func canonicalDriver(name string) (string, error) {
	if to, ok := aliases[name]; ok {
		name = to
	}
	if name == auto || slices.Contains(DriverNames(), name) {
		return name, nil
	}
	return "", errs.New(errs.Usage, "unknown driver %q: auto, %s are known", name, strings.Join(DriverNames(), ", "))
}

// DriverNames returns the names of all drivers, the best first.
func DriverNames() (names []string) {
	for _, d := range drivers {
		names = append(names, d.name)
	}
	return names
}

// Choice is what auto found out about one driver.
type Choice struct {
	Driver string `json:"driver"`
	Chosen bool   `json:"chosen"`
	Reason string `json:"reason,omitempty"` // why it cannot be used
}

// choose tries the drivers in the directory root, and returns the best that works and
// what it found of those before.
func choose(root string) (name string, list []Choice, err error) {
	for _, d := range drivers {
		c := Choice{Driver: d.name, Chosen: d.needs == ""}
		if d.needs != "" {
			b, err := kernelbackend.ProbeOne(root, d.needs)
			if err != nil {
				return "", nil, err
			}
			c.Chosen, c.Reason = b.OK, b.Reason
		}
		list = append(list, c)
		if c.Chosen {
			name = d.name
			break
		}
	}
	return name, list, nil
}

// openDriver opens the driver name, whose files are in home.
func openDriver(name, home string, state driver.State, cfg Config) (driver.Driver, error) {
	for _, d := range drivers {
		if d.name != name {
			continue
		}
		dr, err := d.open(home, state, cfg)
		if err != nil {
			return nil, errs.New(errs.Of(err), "driver %s in %s: %w", name, filepath.Dir(home), err)
		}
		return dr, nil
	}
	return nil, errs.New(errs.Unsupported, "the store has driver %q, which this layerfs does not know", name)
}

func newUnion(home string, cfg Config) (driver.Driver, error) {
	if cfg.Union == nil {
		return nil, errs.New(errs.Unsupported, "this program makes no FUSE mounts")
	}
	return stacked.New(home, cfg.Union)
}

func newThin(home string, _ driver.State, cfg Config) (driver.Driver, error) {
	if cfg.ThinPool == nil {
		return nil, errs.New(errs.Unsupported, "this program has no block store")
	}
	return newDevices(home, cfg, cfg.ThinPool)
}

func newDeviceMapper(home string, state driver.State, cfg Config) (driver.Driver, error) {
	return newDevices(home, cfg, func(home string, o devices.Options) (devices.Pool, error) {
		return devicemapper.Open(home, state, o)
	})
}

// newDevices opens a driver that keeps its trees in the thin devices of a pool.
func newDevices(home string, cfg Config, open func(home string, o devices.Options) (devices.Pool, error)) (driver.Driver, error) {
	o, err := devices.ParseOptions(cfg.remembered, cfg.Options)
	if err != nil {
		return nil, err
	}
	if err := sys.MakeDirs(home, 0700); err != nil {
		return nil, err
	}
	pool, err := open(home, o)
	if err != nil {
		return nil, err
	}
	for _, line := range pool.Warnings() {
		cfg.Warn(line)
	}
	return devices.New(home, pool, o)
}
