package branchtools

import (
	"syscall"
	"testing"

	"github.com/layerfs/layerfs/tests/harness"
)

func TestMain(m *testing.M) {
	syscall.Umask(022)
	harness.FaultMain(m)
}
