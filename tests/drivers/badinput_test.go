package drivers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// TestBadInput: message, exit code, nothing lost.
func TestBadInput(t *testing.T) {
	s := newStore(t, place{driver: "vfs"})
	s.ok("layer", "import", "base", s.tar("base.tar", "f=1"))
	s.ok("container", "create", "--from", "base", "c")
	before := s.Sh("find store | sort")
	for _, c := range []struct {
		code    int
		message string
		args    []string
	}{
		{3, `no layer "absent"`, []string{"container", "create", "--from", "absent", "d"}},
		{3, `no layer "0123456789"`, []string{"container", "create", "--from", "0123456789", "d"}},
		{4, `a container "c" already`, []string{"container", "create", "c"}},
		{2, "cannot be the name of a container", []string{"container", "create", "../x"}},
		{2, "cannot be the name of a container", []string{"container", "create", ""}},
		{2, "cannot be the name of a layer", []string{"layer", "import", "x/../y z", s.P("base.tar")}},
		{4, `a layer "base" already`, []string{"layer", "import", "base", s.P("base.tar")}},
		{4, `a layer "base" already`, []string{"container", "commit", "c", "base"}},
		{4, "container c stands on it", []string{"layer", "rm", "base"}},
		{3, "no container", []string{"container", "mount", "d"}},
		{3, "no container", []string{"container", "rm", "d"}},
		{3, "no container", []string{"container", "changes", "d"}},
		{3, "no layer", []string{"layer", "rm", "d"}},
		{3, "no layer", []string{"layer", "diff", "d", "-o", s.P("d.tar")}},
		{3, "absent.tar", []string{"layer", "import", "new", s.P("absent.tar")}},
		{2, "is a directory", []string{"layer", "import", "new", s.P("base.tar.d")}},
		{6, "is no tar", []string{"layer", "import", "new", harness.Bin()}},
		{2, "operand is missing", []string{"container", "create"}},
		{2, "did you mean 'create'", []string{"container", "creat"}},
		{2, "unexpected operand", []string{"container", "create", "a", "b"}},
		{2, "unknown flag", []string{"container", "rm", "--all"}},
		{2, "unknown option", []string{"info", "--storage-opt", "dm.basesize=1G"}},
		{2, "KEY=VALUE", []string{"info", "--storage-opt", "x"}},
		{2, "was made with driver vfs", []string{"info", "--driver", "union"}},
		{2, `unknown driver "zfs"`, []string{"info", "--driver", "zfs"}},
	} {
		s.fails(c.code, c.message, c.args...)
	}
	require.Equal(t, before, s.Sh("find store | sort"))
	require.Equal(t, "c", field(s.lines("container", "ls")[0], 0))
	require.NoFileExists(t, s.P("d.tar"))
}

// TestOptions: those of a driver are known to it, and only to it.
func TestOptions(t *testing.T) {
	each(t, func(s *store) {
		for opt, want := range map[string]struct {
			driver, message string
			code            int
		}{
			"overlay2.override_kernel_check=true":    {"overlay", "", 0},
			"overlay2.override_kernel_check=perhaps": {"overlay", "true or false", 2},
			"overlay2.size=10G":                      {"overlay", "quota", 7},
			"btrfs.min_space=10G":                    {"btrfs", "", 0},
			"btrfs.min_space=much":                   {"btrfs", "a size is wanted", 2},
		} {
			r := s.run("info", "--storage-opt", opt)
			if s.driver != want.driver {
				require.Equal(s.T, 2, r.Code, opt)
				require.Contains(s.T, strings.ToLower(r.Stderr), "unknown option")
				continue
			}
			require.Equal(s.T, want.code, r.Code, "%s: %s", opt, r.Stderr)
			require.Contains(s.T, r.Stderr, want.message)
		}
	})
}

// TestAuto: the best driver is chosen, which is said, and it stays.
func TestAuto(t *testing.T) {
	e := harness.New(t)
	want := "overlay"
	if !harness.Root() {
		want = "union"
	}
	r := e.Layerfs("--root", e.P("s"), "info")
	require.Zero(t, r.Code, r.Stderr)
	require.Contains(t, r.Stdout, "Storage Driver: "+want)
	require.Contains(t, r.Stderr, "driver "+want)
	if want == "union" {
		require.Contains(t, r.Stderr, "not overlay: ")
		require.Contains(t, r.Stderr, "not btrfs: ")
	}
	for _, d := range []string{"auto", want, map[string]string{"overlay": "overlay2", "union": "aufs"}[want]} {
		r = e.Layerfs("info", "--root", e.P("s"), "--driver", d)
		require.Zero(t, r.Code, r.Stderr)
		require.Empty(t, r.Stderr, "it is said once")
	}
	r = e.Layerfs("--root", e.P("s"), "--driver=vfs", "info")
	require.Equal(t, 2, r.Code, r.Stderr)
}

// TestDefaultRoot: an ordinary user's store is in his home.
func TestDefaultRoot(t *testing.T) {
	if harness.Root() {
		t.Skip("root's is /var/lib/layerfs, which is not the tests'")
	}
	e := harness.New(t)
	e.Setenv("XDG_DATA_HOME", e.P("data"))
	r := e.Layerfs("--driver", "vfs", "info")
	require.Contains(t, r.Stdout, "Root Dir: "+e.P("data", "layerfs"))
}

// TestDamagedIndex: a store whose index is damaged is refused, and left alone.
func TestDamagedIndex(t *testing.T) {
	s := newStore(t, place{driver: "vfs"})
	s.ok("container", "create", "c")
	path := filepath.Join(s.root, "index.db")
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	for name, bad := range map[string]string{"text": strings.Repeat("no index ", 8000), "zeros": string(make([]byte, len(good)))} {
		require.NoError(t, os.WriteFile(path, []byte(bad), 0600))
		s.fails(6, "damaged", "container", "ls")
		now, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, bad, string(now), name)
	}
	require.NoError(t, os.WriteFile(path, good, 0600))
	s.ok("container", "mount", "c")
}

// TestFull: a disk that is full is told, and what did not fit leaves nothing.
func TestFull(t *testing.T) {
	harness.RequireRoot(t)
	for _, driver := range []string{"vfs", "overlay", "union"} {
		t.Run(driver, func(t *testing.T) {
			s := newStore(t, place{driver: driver})
			s.Sh("mkdir small store; mount -t tmpfs -o size=8M tmpfs store")
			t.Cleanup(func() { s.Sh("umount store; mkdir -p store/" + driver + " store/mnt") })
			s.Sh("mkdir big.d; head -c 7M /dev/urandom > big.d/a; head -c 7M /dev/urandom > big.d/b; tar -C big.d -cf big.tar .")
			s.fails(5, "", "layer", "import", "big", s.P("big.tar"))
			require.Empty(t, s.lines("layer", "ls"))
			s.Sh("rm big.d/b; tar -C big.d -cf big.tar .")
			s.ok("layer", "import", "big", s.P("big.tar"))
			s.clear()
		})
	}
}
