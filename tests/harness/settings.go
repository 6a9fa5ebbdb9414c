package harness

import (
	"fmt"
	"os"
	"strconv"
	"time"
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

// FirstSeed is where random histories begin: LAYERFS_TEST_FIRST, by which CI plays the
// same ones each time, else another number each time.
func FirstSeed() uint64 {
	return uint64(Setting("LAYERFS_TEST_FIRST", int(time.Now().Unix()%1e6*1000)))
}

// Full reports whether LAYERFS_TEST_FULL asks for every case instead of some.
func Full() bool { return os.Getenv("LAYERFS_TEST_FULL") != "" }

// MountOptions are options for every mount of a suite, from LAYERFS_TEST_MOUNT:
// copyup=block,copyup_threshold=1 has it run with stubs.
func MountOptions() string { return os.Getenv("LAYERFS_TEST_MOUNT") }
