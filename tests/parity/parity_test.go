package parity

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/layerfs/layerfs/tests/harness"
)

// perHistory is the length of a history.
const perHistory = 5000

// seeds have failed once.
var seeds = []struct {
	seed  uint64
	story string
}{}

func histories(t *testing.T, play func(t *testing.T, seed uint64, n int)) {
	if s := setting("LAYERFS_TEST_SEED", 0); s != 0 {
		play(t, uint64(s), setting("LAYERFS_TEST_OPS", perHistory))
		return
	}
	for _, s := range seeds {
		t.Run(fmt.Sprint(s.seed), func(t *testing.T) { play(t, s.seed, perHistory) })
	}
	first := uint64(time.Now().Unix() % 1e6 * 1000)
	for i := range uint64(max(1, setting("LAYERFS_TEST_OPS", 20000)/perHistory)) {
		t.Run(fmt.Sprint(first+i), func(t *testing.T) { play(t, first+i, perHistory) })
		if t.Failed() && os.Getenv("LAYERFS_TEST_GO_ON") == "" {
			return
		}
	}
}

// TestParity: see the package comment.
func TestParity(t *testing.T) {
	harness.RequireRoot(t)
	histories(t, func(t *testing.T, seed uint64, n int) {
		play(t, seed, n, func(e *harness.Env, _ *side, lowers []string) *side {
			s, _ := overlaySide(e, "ref", lowers)
			return s
		})
	})
}
