//go:build faults

package sys

import (
	"fmt"
	"os"
	"sync"

	"github.com/layerfs/layerfs/internal/faults"
)

var faultPlan = sync.OnceValue(func() *faults.Plan {
	path := os.Getenv("LAYERFS_FAULTS")
	if path == "" {
		return nil
	}
	p, err := faults.Map(path)
	if err != nil {
		panic(fmt.Sprintf("LAYERFS_FAULTS=%s: %v", path, err))
	}
	return p
})

// fault does to the system call op what the test's plan says.
func fault(op string) error {
	if p := faultPlan(); p != nil {
		return p.Check(op)
	}
	return nil
}
