package devices

import (
	"slices"
	"strconv"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
)

// Options are Docker's dm.* options, with Docker's defaults (thin.md §2).
type Options struct {
	ThinpoolDev, DataDev, MetadataDev string

	DirectLVMDevice      string
	DirectLVMForce       bool
	ThinpPercent         uint64 // of the volume group
	ThinpMetaPercent     uint64
	AutoExtendThreshold  uint64
	AutoExtendPercent    uint64
	LoopDataSize         int64 // bytes
	LoopMetadataSize     int64
	BaseSize             int64
	BaseSizeSet          bool // the user has given it
	FS                   string
	MkfsArgs             []string
	MountOptions         string
	BlockSize            int64 // bytes
	BlkDiscard           bool
	BlkDiscardSet        bool
	OverrideUdevSync     bool
	DeferredRemoval      bool
	DeferredDeletion     bool
	MinFreeSpacePercent  uint64
	XFSNoSpaceMaxRetries string // "" for the kernel's
	LibDMLogLevel        int
}

// DefaultOptions are what Docker had. Deferred removal and deletion were off there, and
// what its users had to be told to switch on.
func DefaultOptions() Options {
	return Options{
		ThinpPercent: 95, ThinpMetaPercent: 1, AutoExtendThreshold: 80, AutoExtendPercent: 20,
		LoopDataSize: 100 << 30, LoopMetadataSize: 2 << 30, BaseSize: 10 << 30,
		FS: "ext4", BlockSize: 64 << 10, BlkDiscard: true, MinFreeSpacePercent: 10,
	}
}

// optionTable says what each option means. Values are Docker's, sizes as units.RAMInBytes
// took them: 10G is 10 GiB.
var optionTable = map[string]func(o *Options, v string) error{
	"dm.basesize":         func(o *Options, v string) error { o.BaseSizeSet = true; return setSize(&o.BaseSize, v) },
	"dm.loopdatasize":     func(o *Options, v string) error { return setSize(&o.LoopDataSize, v) },
	"dm.loopmetadatasize": func(o *Options, v string) error { return setSize(&o.LoopMetadataSize, v) },
	"dm.fs": func(o *Options, v string) error {
		if v != "ext4" && v != "xfs" {
			return errs.New(errs.Usage, "devmapper: Unsupported filesystem %s", v)
		}
		o.FS = v
		return nil
	},
	"dm.mkfsarg": func(o *Options, v string) error { o.MkfsArgs = append(o.MkfsArgs, v); return nil },
	"dm.mountopt": func(o *Options, v string) error {
		o.MountOptions = strings.Trim(o.MountOptions+","+v, ",")
		return nil
	},
	"dm.metadatadev": func(o *Options, v string) error { o.MetadataDev = v; return nil },
	"dm.datadev":     func(o *Options, v string) error { o.DataDev = v; return nil },
	"dm.thinpooldev": func(o *Options, v string) error {
		o.ThinpoolDev = strings.TrimPrefix(v, "/dev/mapper/")
		return nil
	},
	"dm.blkdiscard":               func(o *Options, v string) error { o.BlkDiscardSet = true; return setBool(&o.BlkDiscard, v) },
	"dm.blocksize":                func(o *Options, v string) error { return setSize(&o.BlockSize, v) },
	"dm.override_udev_sync_check": func(o *Options, v string) error { return setBool(&o.OverrideUdevSync, v) },
	"dm.use_deferred_removal":     func(o *Options, v string) error { return setBool(&o.DeferredRemoval, v) },
	"dm.use_deferred_deletion":    func(o *Options, v string) error { return setBool(&o.DeferredDeletion, v) },
	"dm.min_free_space":           setMinFree,
	"dm.xfs_nospace_max_retries":  setRetries,
	"dm.directlvm_device":         func(o *Options, v string) error { o.DirectLVMDevice = v; return nil },
	"dm.directlvm_device_force":   func(o *Options, v string) error { return setBool(&o.DirectLVMForce, v) },
	"dm.thinp_percent":            func(o *Options, v string) error { return setPercent(&o.ThinpPercent, "dm.thinp_percent", v) },
	"dm.thinp_metapercent":        func(o *Options, v string) error { return setPercent(&o.ThinpMetaPercent, "dm.thinp_metapercent", v) },
	"dm.thinp_autoextend_percent": func(o *Options, v string) error {
		return setPercent(&o.AutoExtendPercent, "dm.thinp_autoextend_percent", v)
	},
	"dm.thinp_autoextend_threshold": func(o *Options, v string) error {
		return setPercent(&o.AutoExtendThreshold, "dm.thinp_autoextend_threshold", v)
	},
	"dm.libdm_log_level": setLogLevel,
}

// ParseOptions reads KEY=VALUE pairs: those that the store remembers, and those that are
// given now. Keys are taken in any case, as Docker took them.
func ParseOptions(remembered, given []string) (Options, error) {
	o := DefaultOptions()
	lvm := false
	for i, kv := range slices.Concat(remembered, given) {
		if i == len(remembered) {
			o.BaseSizeSet = false // it may have grown since
		}
		key, value, ok := strings.Cut(kv, "=")
		if !ok {
			return o, errs.New(errs.Usage, "unable to parse key/value option: %q: KEY=VALUE is wanted", kv)
		}
		key, value = strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value)
		set := optionTable[key]
		if set == nil {
			return o, errs.New(errs.Usage, "devmapper: Unknown option %s", key)
		}
		if err := set(&o, value); err != nil {
			return o, errs.New(errs.Of(err), "--storage-opt %s: %w", kv, err)
		}
		lvm = lvm || strings.HasPrefix(key, "dm.thinp_")
	}
	if len(given) == 0 {
		o.BaseSizeSet = false
	}
	return o, o.check(lvm)
}

// check finds contradictions. lvm is whether an option about dm.directlvm_device was given.
func (o *Options) check(lvm bool) error {
	switch {
	case lvm && o.DirectLVMDevice == "":
		return errs.New(errs.Usage, "dm.thinp_percent, dm.thinp_metapercent and dm.thinp_autoextend_* need dm.directlvm_device")
	case o.DirectLVMDevice != "" && (o.ThinpoolDev != "" || o.DataDev != "" || o.MetadataDev != ""):
		return errs.New(errs.Usage, "dm.directlvm_device makes a pool of its own: it cannot be used with dm.thinpooldev, dm.datadev or dm.metadatadev")
	case o.DirectLVMDevice != "" && o.ThinpPercent+o.ThinpMetaPercent > 100:
		return errs.New(errs.Usage, "dm.thinp_percent and dm.thinp_metapercent are more than 100 together")
	case o.ThinpoolDev != "" && (o.DataDev != "" || o.MetadataDev != ""):
		return errs.New(errs.Usage, "dm.thinpooldev is a whole pool: it cannot be used with dm.datadev or dm.metadatadev")
	case (o.DataDev == "") != (o.MetadataDev == ""):
		return errs.New(errs.Usage, "dm.datadev and dm.metadatadev have to be given together")
	case o.DeferredDeletion && !o.DeferredRemoval:
		return errs.New(errs.Usage, "devmapper: Deferred deletion can not be enabled as deferred removal is not enabled. Enable deferred removal using --storage-opt dm.use_deferred_removal=true parameter")
	}
	if !o.BlkDiscardSet { // slow on real devices, and loop files get their space back by nothing else
		o.BlkDiscard = o.DataDev == "" && o.ThinpoolDev == "" && o.DirectLVMDevice == ""
	}
	return nil
}

func setBool(to *bool, v string) error {
	b, err := strconv.ParseBool(v)
	if err != nil {
		return errs.New(errs.Usage, "true or false is wanted")
	}
	*to = b
	return nil
}

// binaryUnits are powers of 1024, as in docker/go-units' RAMInBytes.
const binaryUnits = "kmgtp"

func setSize(to *int64, v string) error {
	s := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(v), "b"), "i")
	shift := 0
	if len(s) > 0 {
		if i := strings.IndexByte(binaryUnits, s[len(s)-1]); i >= 0 {
			shift, s = 10*(i+1), s[:len(s)-1]
		}
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	n := f * float64(int64(1)<<shift)
	if err != nil || f < 0 || n >= 1<<62 {
		return errs.New(errs.Usage, "a size is wanted, such as 10G")
	}
	*to = int64(n)
	return nil
}

func setPercent(to *uint64, name, v string) error {
	n, err := strconv.ParseUint(strings.TrimSuffix(v, "%"), 10, 32)
	if err != nil {
		return errs.New(errs.Usage, "could not parse `%s=%s`: a number of percent is wanted", name, v)
	}
	if n > 100 || n == 100 && !strings.Contains(name, "autoextend") {
		return errs.New(errs.Usage, "`%s` must be less than 100", name)
	}
	*to = n
	return nil
}

// setMinFree takes the number with and without "%": some guides leave it out.
func setMinFree(o *Options, v string) error {
	n, err := strconv.ParseUint(strings.TrimSuffix(v, "%"), 10, 32)
	if err != nil || n >= 100 {
		return errs.New(errs.Usage, "devmapper: Invalid value %s for option dm.min_free_space: 0%% to 99%% are possible", v)
	}
	o.MinFreeSpacePercent = n
	return nil
}

func setRetries(o *Options, v string) error {
	if _, err := strconv.ParseUint(v, 10, 64); err != nil {
		return errs.New(errs.Usage, "a number is wanted")
	}
	o.XFSNoSpaceMaxRetries = v
	return nil
}

// setLogLevel takes libdm's levels. There is no libdm here: the value has no effect.
func setLogLevel(o *Options, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 2 || n > 7 {
		return errs.New(errs.Usage, "dm.libdm_log_level must be in range [2,7]")
	}
	o.LibDMLogLevel = n
	return nil
}
