package thinxml

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// tool runs one of thin-provisioning-tools.
func tool(t *testing.T, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%v: %s", args, stderr.String())
	return out
}

// throughTools makes metadata of in with thin_restore, checks it, and returns
// what thin_dump prints of it.
func throughTools(t *testing.T, in []byte) []byte {
	t.Helper()
	for _, name := range []string{"thin_restore", "thin_check", "thin_dump"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip("needs thin-provisioning-tools: ", err)
		}
	}
	dir := t.TempDir()
	xml, meta := filepath.Join(dir, "pool.xml"), filepath.Join(dir, "meta")
	require.NoError(t, os.WriteFile(xml, in, 0o600))
	f, err := os.Create(meta)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(16<<20))
	require.NoError(t, f.Close())
	tool(t, "thin_restore", "-i", xml, "-o", meta)
	tool(t, "thin_check", meta)
	return tool(t, "thin_dump", meta)
}

// random returns a pool of devices that share some of their blocks, in runs of
// every length, across many leaves of the tools' trees.
func random(rnd *rand.Rand) *collector {
	c := &collector{maps: map[uint32][]Range{}}
	c.sb = Superblock{Time: 9, Transaction: rnd.Uint64(), Version: Version, DataBlockSize: minBlockSize * (1 + rnd.Uint32N(16)), DataBlocks: 1 << 20}
	id := uint32(0)
	for range 1 + rnd.IntN(6) {
		id += 1 + rnd.Uint32N(1<<21)
		d := Device{ID: id, Transaction: rnd.Uint64(), CreationTime: rnd.Uint32N(10), SnapTime: rnd.Uint32N(10)}
		origin := rnd.Uint64N(1 << 30)
		for range rnd.IntN(1000) {
			r := Range{origin, rnd.Uint64N(1 << 19), 1, rnd.Uint32N(10)}
			if rnd.IntN(3) == 0 {
				r.Length = 1 + rnd.Uint64N(300)
			}
			c.maps[id] = append(c.maps[id], r)
			d.MappedBlocks += r.Length
			origin += r.Length + rnd.Uint64N(4)/2*rnd.Uint64N(1000)
		}
		c.devices = append(c.devices, d)
	}
	return c
}

// What we write is to the byte what thin_dump writes.
func TestDumpIsOurs(t *testing.T) {
	require.Equal(t, example, string(throughTools(t, []byte(example))))
	for seed := range uint64(8) {
		c := random(rand.New(rand.NewPCG(seed, 1)))
		var ours bytes.Buffer
		require.NoError(t, c.write(&ours, 1+seed*seed))
		dump := throughTools(t, ours.Bytes())
		require.Equal(t, ours.String(), string(dump), "seed %d", seed)
		back, err := collect(string(dump))
		require.NoError(t, err)
		back.ended = c.ended
		require.Equal(t, c.normal(), back.normal(), "seed %d", seed)
	}
}

// The extremes that Read admits are admitted by the tools too.
func TestToolsTakeExtremes(t *testing.T) {
	c := &collector{maps: map[uint32][]Range{}}
	c.sb = Superblock{Time: 1<<32 - 1, Transaction: 1<<64 - 1, Flags: NeedsCheck, Version: 1, DataBlockSize: maxBlockSize, DataBlocks: 1 << 20}
	c.devices = []Device{{maxDeviceID, 2, 1<<64 - 1, 1<<32 - 1, 1<<32 - 1}}
	c.maps[maxDeviceID] = []Range{{0, 1<<20 - 1, 1, maxMapTime}, {c.sb.maxBlocks() - 1, 0, 1, 0}}
	var ours bytes.Buffer
	require.NoError(t, c.write(&ours, 1))
	require.Equal(t, ours.String(), string(throughTools(t, ours.Bytes())))
}
