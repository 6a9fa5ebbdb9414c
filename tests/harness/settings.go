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
