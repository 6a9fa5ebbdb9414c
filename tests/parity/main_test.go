package parity

import (
	"testing"

	"github.com/layerfs/layerfs/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
