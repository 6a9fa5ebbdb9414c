package branchtools

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/internal/faults"
	"github.com/layerfs/layerfs/tests/harness"
)

func TestMain(m *testing.M) {
	syscall.Umask(022)
	bin := os.Getenv("LAYERFS_FAULT_BIN")
	if bin == "" {
		dir, err := os.MkdirTemp(harness.Base(), "layerfs-faults-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		bin = filepath.Join(dir, "layerfs")
		build := exec.Command("go", "build", "-tags", "faults", "-o", bin, "./cmd/layerfs")
		build.Dir, build.Stderr = harness.Repo(), os.Stderr
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "building layerfs with faults:", err)
			os.Exit(1)
		}
		harness.AtExit(func() { os.RemoveAll(dir) })
	}
	// The cases wait for the disk more than they compute.
	flag.Parse()
	_ = flag.Set("test.parallel", "8")
	os.Setenv("LAYERFS_BIN", bin)
	harness.Main(m)
}

// newPlan makes the plan that daemons of this environment will look for.
func newPlan(t *testing.T, e *harness.Env) *faults.Plan {
	t.Helper()
	path := e.P("faults")
	p, err := faults.Create(path)
	require.NoError(t, err)
	e.Setenv("LAYERFS_FAULTS", path)
	return p
}
