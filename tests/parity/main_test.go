package parity

import (
	"os"
	"strconv"
	"testing"

	"github.com/layerfs/layerfs/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

func setting(name string, usual int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return usual
}
