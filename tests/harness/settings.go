package harness

import (
	"fmt"
	"os"
	"strconv"
)

// Setting is the number in a variable of the environment, usual without it.
// What is no number ends the test: a long run that was short would pass for one.
func Setting(name string, usual int) int {
	v := os.Getenv(name)
	if v == "" {
		return usual
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		panic(fmt.Sprintf("%s=%s is no number", name, v))
	}
	return n
}

// Full reports whether LAYERFS_TEST_FULL asks for every case instead of some.
func Full() bool { return os.Getenv("LAYERFS_TEST_FULL") != "" }

// MountOptions are options for every mount of a suite, from LAYERFS_TEST_MOUNT:
// copyup=block,copyup_threshold=1 has it run with stubs.
func MountOptions() string { return os.Getenv("LAYERFS_TEST_MOUNT") }
