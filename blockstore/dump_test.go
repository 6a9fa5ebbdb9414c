package blockstore

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// fill maps blocks of device id in p, each a block of its own.
func fill(t *testing.T, p *Pool, id uint32, virtual ...uint64) {
	t.Helper()
	g, err := p.Reserve(t.Context(), nobody{}, len(virtual))
	require.NoError(t, err)
	require.Len(t, g, len(virtual))
	for i, v := range virtual {
		require.NoError(t, p.Assign(id, nobody{}, []Assignment{{v, g[i].Block}}))
	}
}

// A pool goes through the real tools and comes back as it was.
func TestInterop(t *testing.T) {
	for _, tool := range []string{"thin_restore", "thin_check", "thin_dump"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	dir := filepath.Join(t.TempDir(), "p")
	require.NoError(t, Create(dir, Options{DataSize: 256 << 20}))
	p, err := Open(dir)
	require.NoError(t, err)
	require.NoError(t, p.Message("create_thin 0"))
	fill(t, p, 0, 1, 2, 3, 700, 70000, 1<<28)
	require.NoError(t, p.Message("create_snap 5 0"))
	fill(t, p, 0, 2, 4)
	require.NoError(t, p.Message("create_snap 6 5"))
	fill(t, p, 6, 701, 702)
	require.NoError(t, p.Message("set_transaction_id 0 7"))
	var first bytes.Buffer
	side, err := p.Dump(&first)
	require.NoError(t, err)
	require.NoError(t, p.Close())

	xml, meta := filepath.Join(t.TempDir(), "pool.xml"), filepath.Join(t.TempDir(), "meta")
	require.NoError(t, os.WriteFile(xml, first.Bytes(), 0o600))
	require.NoError(t, os.WriteFile(meta, nil, 0o600))
	require.NoError(t, os.Truncate(meta, 8<<20))
	run := func(name string, args ...string) []byte {
		out, err := exec.Command(name, args...).CombinedOutput()
		require.NoError(t, err, "%s: %s", name, out)
		return out
	}
	run("thin_restore", "-i", xml, "-o", meta)
	run("thin_check", meta)
	dumped := run("thin_dump", meta)
	require.Equal(t, first.String(), string(dumped))

	back := filepath.Join(t.TempDir(), "back")
	require.NoError(t, Restore(back, filepath.Join(dir, "data"), bytes.NewReader(dumped), side))
	p, err = Open(back)
	require.NoError(t, err)
	var again bytes.Buffer
	_, err = p.Dump(&again)
	require.NoError(t, err)
	require.Equal(t, first.String(), again.String())
	diff, err := p.Delta("thin-0", "thin-5")
	require.NoError(t, err)
	require.Equal(t, []Difference{{"same", 1, 1}, {"different", 2, 1}, {"same", 3, 1}, {"left_only", 4, 1},
		{"same", 700, 1}, {"same", 70000, 1}, {"same", 1 << 28, 1}}, diff)
	require.NoError(t, p.Audit())
	require.NoError(t, p.Close())
}
