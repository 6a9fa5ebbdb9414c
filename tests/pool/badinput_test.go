package pool

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// pool makes a pool with a device "a" of 64 MiB that starts with content.
func pool(t *testing.T, content []byte) *harness.Env {
	e := harness.New(t)
	ok(e, "pool", "create", e.P("p"), "--data-size", "1G")
	ok(e, "thin", "create", e.P("p"), "a", "--size", "64M")
	require.NoError(t, os.WriteFile(e.P("content"), content, 0o600))
	e.Sh(fmt.Sprintf("%s thin write p a 0 %d < content", harness.Bin(), len(content)))
	gone(e)
	return e
}

// gone waits for the end of the pool's process.
func gone(e *harness.Env) {
	e.T.Helper()
	require.True(e.T, harness.Eventually(harness.Moment, func() bool { return len(harness.Daemons(e.P("p"))) == 0 }))
}

// ok runs layerfs, which must succeed.
func ok(e *harness.Env, args ...string) string {
	e.T.Helper()
	r := e.Layerfs(args...)
	require.Zero(e.T, r.Code, "layerfs %v: %s", args, r.Stderr)
	return r.Stdout
}

// refused runs layerfs, which must fail with the code, in one line that says
// all of want.
func refused(e *harness.Env, code int, want string, args ...string) {
	e.T.Helper()
	r := e.Layerfs(args...)
	require.Equal(e.T, code, r.Code, "layerfs %v: %s%s", args, r.Stdout, r.Stderr)
	require.Contains(e.T, r.Stderr, want)
	require.Equal(e.T, 1, strings.Count(r.Stderr, "\n"), r.Stderr)
	require.NotContains(e.T, r.Stderr, "goroutine")
}

func TestWrongUse(t *testing.T) {
	e := pool(t, []byte("x"))
	p := e.P("p")
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{2, "multiple of 64K", []string{"pool", "create", e.P("q"), "--block-size", "65"}},
		{2, "multiple of 64K", []string{"pool", "create", e.P("q"), "--block-size", "2G"}},
		{2, "size \"1X\"", []string{"pool", "create", e.P("q"), "--data-size", "1X"}},
		{2, "size \"-1G\"", []string{"pool", "create", e.P("q"), "--data-size", "-1G"}},
		{2, "data size", []string{"pool", "create", e.P("q"), "--data-size", "1K"}},
		{2, "autoextend threshold", []string{"pool", "create", e.P("q"), "--autoextend-threshold", "20", "--autoextend-percent", "20"}},
		{2, "need each other", []string{"pool", "create", e.P("q"), "--autoextend-threshold", "80"}},
		{2, "minimum free space", []string{"pool", "create", e.P("q"), "--min-free-space", "100%"}},
		{2, "low-water", []string{"pool", "create", e.P("q"), "--low-water", "101%"}},
		{1, "is not empty", []string{"pool", "create", p}},
		{3, "does not exist", []string{"pool", "status", e.P("q")}},
		{3, "not a pool", []string{"pool", "status", e.P(".")}},
		{2, "cannot shrink", []string{"pool", "resize", p, "1M"}},
		{2, "size \"\"", []string{"pool", "resize", p, ""}},
		{2, "1M to 64T", []string{"thin", "create", p, "b", "--size", "64K"}},
		{2, "1M to 64T", []string{"thin", "create", p, "b", "--size", "65T"}},
		{2, "512 bytes", []string{"thin", "create", p, "b", "--size", "1048577"}},
		{2, "--size is missing", []string{"thin", "create", p, "b"}},
		{2, "device name", []string{"thin", "create", p, "a/b", "--size", "1G"}},
		{2, "device name", []string{"thin", "create", p, "..", "--size", "1G"}},
		{1, "file exists", []string{"thin", "create", p, "a", "--size", "1G"}},
		{3, "no-such-file", []string{"thin", "create", p, "b", "--origin", e.P("no-such-file")}},
		{3, `no thin device "zz"`, []string{"thin", "snap", p, "zz", "b"}},
		{3, `no thin device "zz"`, []string{"thin", "rm", p, "zz"}},
		{2, "--shrink", []string{"thin", "resize", p, "a", "1M"}},
		{2, "block \"x\"", []string{"thin", "trace", p, "a", "x"}},
		{2, "beyond", []string{"thin", "read", p, "a", "1G", "1"}},
		{1, "the device ends", []string{"thin", "read", p, "a", "64M", "1"}},
		{2, "event \"dinner\"", []string{"pool", "wait", "--event", "dinner", p}},
		{2, "Unrecognised", []string{"pool", "message", p, "trim"}},
		{2, "--nbd unix:PATH", []string{"pool", "serve", p}},
		{2, "--data", []string{"pool", "restore", e.P("q")}},
		{3, "no such file", []string{"pool", "restore", e.P("q"), "--data", e.P("no-such-file")}},
		{2, "did you mean 'snap'", []string{"thin", "snp", p}},
	} {
		refused(e, c.code, c.want, c.args...)
	}
	_, err := os.Lstat(e.P("q"))
	require.True(t, os.IsNotExist(err), "a refused command left something")
	require.Equal(t, "x", ok(e, "thin", "read", p, "a", "0", "1"))
	gone(e)
}

func TestTruncatedData(t *testing.T) {
	content := bytes.Repeat([]byte("layerfs "), 64<<10)
	e := pool(t, content)
	require.NoError(t, os.Truncate(e.P("p", "data"), 100_000))
	refused(e, 6, "it was cut", "pool", "status", e.P("p"))
	refused(e, 6, "--repair", "pool", "check", e.P("p"))
	r := e.Layerfs("pool", "check", "--repair", e.P("p"))
	require.Zero(t, r.Code, r.Stderr)
	require.Contains(t, r.Stdout, "repaired")
	got := ok(e, "thin", "read", e.P("p"), "a", "0", fmt.Sprint(len(content)))
	require.Equal(t, string(content[:100_000]), got[:100_000], "what was not cut is there")
	require.Equal(t, strings.Repeat("\x00", len(content)-131072), got[131072:])
	gone(e)
	require.NoError(t, os.Remove(e.P("p", "data")))
	refused(e, 6, "lost its data file", "pool", "status", e.P("p"))
}

// Any bit of the index may be wrong: the answer is an error, or right.
func TestDamagedIndex(t *testing.T) {
	content := bytes.Repeat([]byte("layerfs!"), 64<<10)
	e := pool(t, content)
	for i := range 12 {
		ok(e, "thin", "snap", e.P("p"), "a", fmt.Sprint("s", i))
	}
	gone(e)
	e.Sh("cp -a p/index good")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	errors := 0
	for range 25 {
		e.Sh("rm -rf p/index && cp -a --sparse=always good p/index")
		where := flip(t, e.P("p", "index"), rng)
		r := e.Layerfs("thin", "read", e.P("p"), "s3", "0", fmt.Sprint(len(content)))
		require.NotContains(t, r.Stderr, "goroutine", where)
		if r.Code == 0 {
			require.Equal(t, string(content), r.Stdout, where)
		} else {
			errors++
			require.NotEmpty(t, r.Stderr, where)
			require.True(t, strings.HasPrefix(string(content), r.Stdout), where)
		}
		check := e.Layerfs("pool", "check", e.P("p"))
		require.NotContains(t, check.Stderr, "goroutine", where)
		gone(e)
	}
	t.Logf("%d of 25 damages were noticed by the read", errors)
}

// flip changes a bit of what is written of a file of the index.
func flip(t *testing.T, dir string, rng *rand.Rand) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	for {
		name := names[rng.IntN(len(names))]
		raw, err := os.ReadFile(name)
		require.NoError(t, err)
		end := len(bytes.TrimRight(raw, "\x00"))
		if end == 0 {
			continue
		}
		at := rng.IntN(end)
		raw[at] ^= 1 << rng.IntN(8)
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt(raw[at:at+1], int64(at))
		require.NoError(t, err)
		require.NoError(t, f.Close())
		return fmt.Sprintf("%s at %d", filepath.Base(name), at)
	}
}

func TestHostileXML(t *testing.T) {
	e := harness.New(t)
	for name, xml := range map[string]string{
		"empty":    "",
		"no xml":   "\x7fELF\x00\x00",
		"entities": `<!DOCTYPE x [<!ENTITY a "aaaa">]><superblock uuid="&a;"/>`,
		"beyond": `<superblock uuid="" time="0" transaction="0" data_block_size="128" nr_data_blocks="16">
			<device dev_id="0" mapped_blocks="1" transaction="0" creation_time="0" snap_time="0">
			<single_mapping origin_block="0" data_block="16" time="0"/></device></superblock>`,
		"check": `<superblock uuid="" time="0" transaction="0" flags="1" data_block_size="128" nr_data_blocks="16"></superblock>`,
		"huge":  `<superblock uuid="" time="0" transaction="0" data_block_size="128" nr_data_blocks="99999999"></superblock>`,
		"shared": `<superblock uuid="" time="0" transaction="0" data_block_size="128" nr_data_blocks="16">
			<device dev_id="0" mapped_blocks="2" transaction="0" creation_time="0" snap_time="0">
			<single_mapping origin_block="0" data_block="3" time="0"/><single_mapping origin_block="1" data_block="3" time="0"/></device></superblock>`,
	} {
		require.NoError(t, os.WriteFile(e.P("x.xml"), []byte(xml), 0o600))
		e.Sh("rm -rf q; truncate -s 1M d")
		r := e.Cmd(nil, "sh", "-c", harness.Bin()+" pool restore q --data d < x.xml")
		require.Equal(t, 6, r.Code, "%s: %s", name, r.Stderr)
		require.Equal(t, 1, strings.Count(r.Stderr, "\n"), r.Stderr)
		_, err := os.Stat(e.P("d"))
		require.NoError(t, err, "%s: the data file is gone", name)
		_, err = os.Stat(e.P("q"))
		require.True(t, os.IsNotExist(err), "%s: something was left", name)
	}
}
