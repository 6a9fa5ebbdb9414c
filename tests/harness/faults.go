package harness

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/internal/faults"
)

// FaultMain is Main for tests of a program whose system calls fail or kill it as
// a plan says: $LAYERFS_FAULT_BIN, else one that is built for it.
func FaultMain(m *testing.M) {
	bin := os.Getenv("LAYERFS_FAULT_BIN")
	if bin == "" {
		dir, err := os.MkdirTemp(Base(), "layerfs-faults-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		bin = filepath.Join(dir, "layerfs")
		build := exec.Command("go", "build", "-tags", "faults", "-o", bin, "./cmd/layerfs")
		build.Dir, build.Stderr = Repo(), os.Stderr
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "building layerfs with faults:", err)
			os.Exit(1)
		}
		AtExit(func() { os.RemoveAll(dir) })
	}
	// The cases wait for the disk more than they compute.
	flag.Parse()
	_ = flag.Set("test.parallel", "8")
	os.Setenv("LAYERFS_BIN", bin)
	Main(m)
}

// Plan makes the plan that programs of this environment will look for.
func (e *Env) Plan() *faults.Plan {
	e.T.Helper()
	path := e.P("faults")
	p, err := faults.Create(path)
	require.NoError(e.T, err)
	e.Setenv("LAYERFS_FAULTS", path)
	return p
}
