package data

import (
	"os"
	"syscall"
	"testing"

	"github.com/layerfs/layerfs/tests/harness"
)

func TestMain(m *testing.M) {
	syscall.Umask(022)
	if job := os.Getenv(workerEnv); job != "" {
		os.Exit(stressWorker(job))
	}
	harness.Main(m)
}

// ops is how many operations a test does.
func ops(t testing.TB, otherwise int) int {
	t.Helper()
	if testing.Short() {
		otherwise /= 4
	}
	return harness.Setting("LAYERFS_TEST_OPS", otherwise)
}

// story is a seed that is always tried, and why: one that has found a bug
// stays for ever.
type story struct {
	seed int
	why  string
}

// seeds returns the seeds to try.
func seeds(t testing.TB, table []story) []story {
	t.Helper()
	if n := harness.Setting("LAYERFS_TEST_SEED", -1); n >= 0 {
		return []story{{n, "asked for"}}
	}
	return table
}
