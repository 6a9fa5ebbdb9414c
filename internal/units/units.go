// Package units writes sizes as other programs do.
package units

import "fmt"

// Decimal writes bytes as `docker info` does: four digits, powers of 1000.
func Decimal(n int64) string {
	v := float64(n)
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	for v >= 1000 && len(units) > 1 {
		v, units = v/1000, units[1:]
	}
	return fmt.Sprintf("%.4g%s", v, units[0])
}
