package main

import (
	"math"
	"strconv"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
)

// parseSize reads a size in bytes: 10G, 64K, 1MiB, 4096. The units are
// powers of 1024, as in lvm and qemu-img.
func parseSize(s string) (int64, error) {
	number := strings.TrimRight(s, "bBiIkKmMgGtTpP")
	shift, ok := map[string]int{"": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}[unitOf(s[len(number):])]
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !ok || v < 0 || math.IsNaN(v) || v*float64(int64(1)<<shift) >= math.MaxInt64 || number != strings.TrimLeft(number, "+ ") {
		return 0, errs.New(errs.Usage, "size %q: must be a number with a unit, such as 10G, 64K or 1MiB", s)
	}
	if whole, err := strconv.ParseInt(number, 10, 64); err == nil {
		return whole << shift, nil
	}
	return int64(v * float64(int64(1)<<shift)), nil
}

// unitOf reduces a unit to its letter: KiB, KB and k are K.
func unitOf(s string) string {
	s = strings.ToUpper(s)
	return strings.TrimSuffix(strings.TrimSuffix(s, "B"), "I")
}

// parsePercent reads 10% or 10.
func parsePercent(s string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSuffix(s, "%"))
	if err != nil || n < 0 || n > 100000 {
		return 0, errs.New(errs.Usage, "percentage %q: must be a whole number such as 10%%", s)
	}
	return n, nil
}

// optionalPercent is parsePercent; nothing is 0.
func optionalPercent(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	return parsePercent(s)
}
