package layers

import (
	"slices"
	"strconv"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/layers/driver/devices"
)

// optionNames are the keys that each driver knows, with Docker's meanings, and what is
// wrong with a value. Those of drivers with devices are in package devices.
var optionNames = map[string]map[string]func(value string) error{
	Overlay: {
		"overlay2.override_kernel_check": isBool, // for kernels that nobody has any more, as in Docker
		"overlay2.size":                  noQuota,
	},
	Btrfs: {
		"btrfs.min_space": isSize, // the least that a container could be limited to, as nothing limits them here
	},
}

// checkOptions looks at the KEY=VALUE pairs that are meant for the driver.
func checkOptions(driver string, list []string) error {
	if driver == Thin || driver == DeviceMapper {
		_, err := devices.ParseOptions(nil, list)
		return err
	}
	for _, kv := range list {
		key, value, ok := strings.Cut(kv, "=")
		if !ok {
			return errs.New(errs.Usage, "--storage-opt %s: KEY=VALUE is wanted", kv)
		}
		key = strings.ToLower(strings.TrimSpace(key)) // as Docker did
		if rest, ok := strings.CutPrefix(key, "overlay."); ok {
			key = "overlay2." + rest
		}
		check := optionNames[driver][key]
		if check == nil {
			return unknownOption(driver, key)
		}
		if err := check(value); err != nil {
			return errs.New(errs.Of(err), "--storage-opt %s: %w", kv, err)
		}
	}
	return nil
}

func unknownOption(driver, key string) error {
	var known []string
	for k := range optionNames[driver] {
		known = append(known, k)
	}
	slices.Sort(known)
	if len(known) == 0 {
		return errs.New(errs.Usage, "driver %s: unknown option %s: it has none", driver, key)
	}
	return errs.New(errs.Usage, "driver %s: unknown option %s: it has %s", driver, key, strings.Join(known, ", "))
}

func isBool(v string) error {
	if _, err := strconv.ParseBool(v); err != nil {
		return errs.New(errs.Usage, "true or false is wanted")
	}
	return nil
}

func isSize(v string) error {
	digits := strings.TrimRight(strings.ToLower(v), "kmgtib")
	if _, err := strconv.ParseUint(digits, 10, 63); err != nil {
		return errs.New(errs.Usage, "a size is wanted, such as 10G")
	}
	return nil
}

func noQuota(string) error {
	return errs.New(errs.Unsupported, "limits by project quota are not in this version")
}
