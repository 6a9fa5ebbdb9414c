package drivers

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

func TestMain(m *testing.M) {
	syscall.Umask(022)
	harness.FaultMain(m)
}

// place is a driver and who uses it.
type place struct {
	driver   string
	ordinary bool // as root's tests, but as an ordinary user
}

func (p place) String() string {
	if p.ordinary {
		return p.driver + " for an ordinary user"
	}
	return p.driver
}

// places are where this user can have stores. The first is what the others are
// compared with. LAYERFS_TEST_DRIVERS names others, for machines that have what this one
// lacks (tests/vm).
func places() []place {
	if asked := os.Getenv("LAYERFS_TEST_DRIVERS"); asked != "" {
		var list []place
		for _, d := range strings.Fields(asked) {
			list = append(list, place{driver: d})
		}
		return list
	}
	if !harness.Root() {
		return []place{{driver: "vfs"}, {driver: "union"}, {driver: "thin"}}
	}
	return []place{{driver: "vfs"}, {driver: "overlay"}, {driver: "union"}, {driver: "btrfs"}, {"btrfs", true}, {driver: "thin"}}
}

// store is a store of one test.
type store struct {
	*harness.Env
	place
	root string
	more []string // options
}

// each runs a test on every driver.
func each(t *testing.T, test func(s *store)) {
	for _, p := range places() {
		t.Run(p.String(), func(t *testing.T) { test(newStore(t, p)) })
	}
}

func newStore(t testing.TB, p place) *store {
	t.Helper()
	if p.driver == "union" {
		harness.RequireFUSE(t)
	}
	e := harness.New(t)
	s := &store{Env: e, place: p, root: e.P("store")}
	if p.driver == "btrfs" {
		dir, err := os.MkdirTemp(btrfs(t), "store-")
		require.NoError(t, err)
		s.root = filepath.Join(dir, "store")
		t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
		if p.ordinary {
			require.NoError(t, os.Chown(dir, harness.Ordinary, harness.Ordinary))
		}
	}
	if p.ordinary {
		require.NoError(t, os.Chmod(e.Dir, 0777))
	}
	t.Cleanup(s.clear)
	return s
}

// clear removes everything and requires that nothing is left.
func (s *store) clear() {
	for _, l := range s.lines("container", "ls") {
		s.ok("container", "rm", "-f", strings.Fields(l)[0])
	}
	listed := s.lines("layer", "ls")
	for _, l := range slices.Backward(listed) { // what stands on others comes last
		ref := field(l, 0)
		if ref == "<none>" {
			ref = field(l, 1)
		}
		s.run("layer", "rm", ref) // it may have gone with another
	}
	require.Empty(s.T, s.lines("layer", "ls"))
	require.Empty(s.T, s.trees(), "left in the store")
	if s.driver == "devicemapper" {
		s.ok("device", "deactivate")
		require.NotContains(s.T, s.Sh("dmsetup ls; losetup -a"), "layerfs")
	}
	entries, err := os.ReadDir(filepath.Join(s.root, "mnt"))
	require.NoError(s.T, err)
	require.Empty(s.T, entries)
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	require.NotContains(s.T, string(mounts), s.root+"/")
	require.True(s.T, harness.Eventually(harness.Moment, func() bool { return len(harness.Daemons(filepath.Join(s.root, "run"))) == 0 }),
		"the process that serves mounts does not end")
}

// trees are the ids of what the driver keeps.
func (s *store) trees() (ids []string) {
	s.T.Helper()
	if s.driver == "devicemapper" {
		return s.mapped()
	}
	if s.driver == "thin" {
		r := s.Cmd(nil, harness.Bin(), "thin", "ls", filepath.Join(s.root, "thin", "pool"))
		require.Zero(s.T, r.Code, r.Stderr)
		for _, l := range strings.Split(r.Stdout, "\n")[1:] {
			if name := field(l, 1); name != "" && name != "base" {
				ids = append(ids, name)
			}
		}
		slices.Sort(ids)
		return ids
	}
	entries, err := os.ReadDir(filepath.Join(s.root, s.driver))
	require.NoError(s.T, err)
	for _, e := range entries {
		if e.Name() != "empty" {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

// mapped are the numbers of the devices in dm-thin's metadata but the base device's.
// thin_check has nothing to say about a copy of it, made while the pool is suspended.
func (s *store) mapped() (ids []string) {
	s.T.Helper()
	info := s.ok("info") // the pool is active then
	of := func(field string) string {
		_, value, _ := strings.Cut(info, " "+field+": ")
		value, _, _ = strings.Cut(value, "\n")
		return value
	}
	out := s.Sh(`rm -f metadata
		dmsetup suspend ` + of("Pool Name") + `
		rc=0; dd if=` + of("Metadata file") + ` of=metadata bs=1M iflag=direct conv=sparse status=none || rc=$?
		dmsetup resume ` + of("Pool Name") + `
		[ $rc = 0 ] && thin_check -q metadata && thin_ls --no-headers -o DEV metadata`)
	require.NotEmpty(s.T, out, "there is no base device")
	return strings.Fields(out)[1:]
}

// run runs a command on the store.
func (s *store) run(args ...string) harness.Result {
	s.T.Helper()
	var prepare func(*exec.Cmd)
	if s.ordinary {
		prepare = harness.AsOrdinary
	}
	return s.Cmd(prepare, harness.Bin(), append(s.flags(), args...)...)
}

// devices reports whether trees lie in thin devices.
func (s *store) devices() bool { return s.driver == "thin" || s.driver == "devicemapper" }

// flags are the options of the store.
func (s *store) flags() []string {
	list := []string{"--root", s.root, "--driver", s.driver}
	if s.devices() {
		list = append(list, "--storage-opt", "dm.basesize=512M", "--storage-opt", "dm.loopdatasize=8G", "--storage-opt", "dm.loopmetadatasize=64M")
	}
	for _, o := range strings.Fields(os.Getenv("LAYERFS_TEST_STORAGE_OPT")) {
		list = append(list, "--storage-opt", o)
	}
	return append(list, s.more...)
}

// ok runs a command that must succeed, and returns its output.
func (s *store) ok(args ...string) string {
	s.T.Helper()
	r := s.run(args...)
	require.Zero(s.T, r.Code, "layerfs %s: %s%s", strings.Join(args, " "), r.Stdout, r.Stderr)
	return strings.TrimSpace(r.Stdout)
}

// fails runs a command that must fail in a certain way.
func (s *store) fails(code int, message string, args ...string) {
	s.T.Helper()
	r := s.run(args...)
	require.Equal(s.T, code, r.Code, "layerfs %s: %s%s", strings.Join(args, " "), r.Stdout, r.Stderr)
	require.Contains(s.T, r.Stderr, message)
}

// lines returns what a listing has below its heading.
func (s *store) lines(args ...string) []string {
	s.T.Helper()
	_, body, _ := strings.Cut(s.ok(args...), "\n")
	if body == "" {
		return nil
	}
	return strings.Split(body, "\n")
}

// tar makes a tar of what spec says, in the notation of harness.MkTree.
func (s *store) tar(name, spec string) string {
	s.T.Helper()
	dir := s.P(name + ".d")
	require.NoError(s.T, os.Mkdir(dir, 0755))
	harness.MkTree(s.T, dir, spec)
	s.Sh("cd " + name + ".d && find . -depth -exec touch -h -d 2001-01-01 {} + && tar --xattrs --xattrs-include='*' --format=pax --sort=name -cf ../" + name + " .")
	return s.P(name)
}

var btrfsOnce sync.Once
var btrfsDir string

// btrfs is a directory on btrfs, on a loop device, which all tests share.
func btrfs(t testing.TB) string {
	t.Helper()
	harness.RequireRoot(t)
	harness.RequireTool(t, "mkfs.btrfs", "btrfs-progs")
	btrfsOnce.Do(func() {
		dir, err := os.MkdirTemp(harness.Base(), "layerfs-btrfs-")
		require.NoError(t, err)
		require.NoError(t, os.Chmod(dir, 0755))
		out, err := exec.Command("sh", "-ec", "cd "+dir+" && truncate -s 1G img && mkfs.btrfs -q img && mkdir m && mount -o loop img m && chmod 755 m").CombinedOutput()
		require.NoError(t, err, "%s", out)
		btrfsDir = filepath.Join(dir, "m")
		harness.AtExit(func() {
			_ = exec.Command("umount", btrfsDir).Run()
			os.RemoveAll(dir)
		})
	})
	require.NotEmpty(t, btrfsDir, "btrfs could not be made")
	return btrfsDir
}
