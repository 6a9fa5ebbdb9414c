package nbd

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// tool runs a program that has to be there in strict mode, and returns what
// it prints.
func tool(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(t, args...)
	require.NoError(t, err, "%q: %s", args, out)
	return out
}

func try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		if os.Getenv("LAYERFS_TEST_STRICT") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cmd := exec.Command("timeout", append([]string{"60"}, args...)...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// toolServer serves two devices: disk, with data in some blocks, and empty.
func toolServer(t *testing.T) (disk *mem, uri func(name string) string) {
	t.Helper()
	disk = newMem(64<<20 + 512)
	for _, off := range []int64{0, 5 * memBlock, 16 << 20, 64 << 20} {
		disk.poke(pattern(512), off)
	}
	s := newStore(map[string]*mem{"disk": disk, "empty": newMem(disk.size)}, "disk", "empty")
	_, path := serve(t, s)
	return disk, func(name string) string { return "nbd+unix:///" + name + "?socket=" + path }
}

func TestNbdinfo(t *testing.T) {
	_, uri := toolServer(t)
	var info struct {
		Exports []map[string]any `json:"exports"`
	}
	require.NoError(t, json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", "--list", uri("disk"))), &info))
	require.Len(t, info.Exports, 2)
	for key, want := range map[string]any{
		"export-name": "disk", "description": description, "export-size": 64<<20 + 512.0,
		"block_size_minimum": 1.0, "block_size_preferred": 65536.0, "block_size_maximum": 33554432.0,
		"is_read_only": false, "is_rotational": false, "can_cache": false,
		"can_df": true, "can_fast_zero": true, "can_flush": true, "can_fua": true,
		"can_multi_conn": true, "can_trim": true, "can_zero": true,
		"contexts": []any{contextName},
	} {
		require.Equal(t, want, info.Exports[0][key], key)
	}
	for _, can := range []string{"flush", "fua", "trim", "zero", "fast-zero", "multi-conn", "df", "structured-reply"} {
		tool(t, "nbdinfo", "--can", can, uri("disk"))
	}
	_, err := try(t, "nbdinfo", "--can", "cache", uri("disk"))
	require.Error(t, err)
}

func TestNbdinfoMap(t *testing.T) {
	_, uri := toolServer(t)
	lines := strings.Split(strings.TrimSpace(tool(t, "nbdinfo", "--map", uri("disk"))), "\n")
	for i := range lines {
		lines[i] = strings.Join(strings.Fields(lines[i]), " ")
	}
	require.Equal(t, []string{
		"0 65536 0 data", "65536 262144 3 hole,zero", "327680 65536 0 data", "393216 16384000 3 hole,zero",
		"16777216 65536 0 data", "16842752 50266112 3 hole,zero", "67108864 512 0 data",
	}, lines)
}

func TestNbdcopy(t *testing.T) {
	disk, uri := toolServer(t)
	file := filepath.Join(t.TempDir(), "copy")
	tool(t, "nbdcopy", uri("disk"), file)
	require.True(t, bytes.Equal(disk.content(), read(t, file)))
	tool(t, "nbdcopy", "--flush", file, uri("empty"))
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri("disk"), uri("empty"))
}

func (m *mem) content() []byte {
	p := make([]byte, m.size)
	m.peek(p, 0)
	return p
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return b
}

func TestQemuImg(t *testing.T) {
	disk, uri := toolServer(t)
	require.Contains(t, tool(t, "qemu-img", "info", uri("disk")), "virtual size: 64 MiB (67109376 bytes)")
	out, err := try(t, "qemu-img", "info", uri("nowhere"))
	require.Error(t, err)
	require.Contains(t, out, `no device "nowhere"`, "the reason reaches the user")
	var extents []struct {
		Start, Length int64
		Data, Zero    bool
	}
	require.NoError(t, json.Unmarshal([]byte(tool(t, "qemu-img", "map", "--output=json", uri("disk"))), &extents))
	require.Len(t, extents, 7)
	require.EqualValues(t, 16384000, extents[3].Length)
	require.True(t, extents[3].Zero)
	require.False(t, extents[3].Data)

	// Out to a qcow2, and from there into another device.
	file := filepath.Join(t.TempDir(), "disk.qcow2")
	tool(t, "qemu-img", "convert", "-O", "qcow2", uri("disk"), file)
	tool(t, "qemu-img", "convert", "-n", "-W", "-m", "16", "-O", "raw", file, uri("empty"))
	tool(t, "qemu-img", "compare", uri("disk"), uri("empty"))
	tool(t, "qemu-img", "compare", file, uri("disk"))
	disk.poke([]byte{1}, 1<<20)
	_, err = try(t, "qemu-img", "compare", file, uri("disk"))
	require.Error(t, err)
}

func TestQemuIo(t *testing.T) {
	disk, uri := toolServer(t)
	qemuIo := func(commands ...string) {
		t.Helper()
		args := []string{"qemu-io", "-f", "raw"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		require.NotContains(t, tool(t, append(args, uri("disk"))...), "failed")
	}
	before := disk.ops()
	qemuIo("write -P 7 -f 1M 3M", "read -P 7 1M 3M")
	require.Greater(t, disk.count("flush"), before["flush"])
	qemuIo("aio_write -P 8 2M 64k", "aio_write -P 9 100 7", "aio_read 0 1M", "aio_flush", "read -P 8 2M 64k", "read -P 9 100 7")
	qemuIo("discard 1M 1M", "flush", "write -z 3000 100k", "read -P 0 3000 100k", "write -z -u 2000k 1M", "read -P 0 2000k 1M")
	for _, op := range []string{"discard", "zero", "unmap"} {
		require.Greater(t, disk.count(op), before[op], op)
	}
}

func TestQemuImgBench(t *testing.T) {
	_, uri := toolServer(t)
	tool(t, "qemu-img", "bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4096", uri("disk"))
	tool(t, "qemu-img", "bench", "-f", "raw", "-c", "500", "-d", "16", "-s", "65536", "-w", "--flush-interval=50", uri("disk"))
}

// fio writes blocks that describe themselves and checks them when it reads
// them back.
func TestFioVerify(t *testing.T) {
	_, uri := toolServer(t)
	start := time.Now()
	tool(t, "fio", "--name=v", "--ioengine=nbd", "--uri="+uri("disk"), "--rw=randwrite", "--bsrange=512-256k", "--size=32m",
		"--iodepth=32", "--verify=crc32c", "--verify_fatal=1", "--end_fsync=1", "--output-format=terse")
	require.Less(t, time.Since(start), time.Minute)
}
