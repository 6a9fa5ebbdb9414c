package layers

import (
	"slices"
	"strconv"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
)

// options is what --storage-opt amounts to.
type options struct {
	minSpace string // btrfs.min_space: the least that a container may be limited to
}

// optionNames are the keys that each driver knows, with Docker's meanings.
var optionNames = map[string]map[string]func(o *options, value string) error{
	Overlay: {
		"overlay2.override_kernel_check": isBool, // for kernels that nobody has any more, as in Docker
		"overlay2.size":                  noQuota,
	},
	Btrfs: {
		"btrfs.min_space": func(o *options, v string) error { o.minSpace = v; return isSize(v) },
	},
}

// parseOptions reads KEY=VALUE pairs for the driver.
func parseOptions(driver string, list []string) (options, error) {
	var o options
	for _, kv := range list {
		key, value, ok := strings.Cut(kv, "=")
		if !ok {
			return o, errs.New(errs.Usage, "--storage-opt %s: KEY=VALUE is wanted", kv)
		}
		key = strings.ToLower(strings.TrimSpace(key)) // as Docker did
		if rest, ok := strings.CutPrefix(key, "overlay."); ok {
			key = "overlay2." + rest
		}
		set := optionNames[driver][key]
		if set == nil {
			return o, unknownOption(driver, key)
		}
		if err := set(&o, value); err != nil {
			return o, errs.New(errs.Of(err), "--storage-opt %s: %w", kv, err)
		}
	}
	return o, nil
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

func isBool(_ *options, v string) error {
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

func noQuota(_ *options, _ string) error {
	return errs.New(errs.Unsupported, "limits by project quota are not in this version")
}
