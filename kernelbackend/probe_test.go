package kernelbackend

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain is what the program that imports this package does too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ProbeCommand {
		if err := ProbeProcess(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestProbe(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "layerfs-kernelbackend-")
	require.NoError(t, err)
	defer os.Remove(dir)
	start := time.Now()
	list, err := Probe(dir)
	took := time.Since(start)
	require.NoError(t, err)
	require.Len(t, list, len(probes))
	for i, b := range list {
		t.Log(b.Name, b.OK, b.Reason, b.Features)
		require.Equal(t, probes[i].name, b.Name)
		require.NotEqual(t, b.OK, b.Reason != "", "yes, or no with a reason: %v", b)
		for _, f := range b.Features {
			require.NotEqual(t, f.OK, f.Reason != "", "%s: %v", b.Name, f)
		}
	}
	t.Log(took)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	table, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(table), dir)
	one, err := ProbeOne(dir, Reflink)
	require.NoError(t, err)
	require.Equal(t, list[6], one)
	_, err = ProbeOne(dir, "no such")
	require.ErrorContains(t, err, "no such")
	_, err = Probe("/not/there")
	require.ErrorContains(t, err, "/not/there")
}
