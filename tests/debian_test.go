package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// TestDebianRoot does in a Debian root what people do there, once on layerfs
// and once on kernel overlay, and wants the same tree.
func TestDebianRoot(t *testing.T) {
	harness.RequireRoot(t)
	if testing.Short() {
		t.Skip("long: it installs packages")
	}
	tar := debianRoot(t)
	e := harness.New(t)
	e.Sh("tar -C l -xpf " + tar)
	e.Sh("cp /etc/resolv.conf l/etc/resolv.conf; mkdir ou ow om")
	prepareSource(t, e)
	before := harness.Dump(t, e.P("l"), harness.DumpOptions{Times: true})

	// Kernel overlay copies a directory that is renamed, and so do dpkg and
	// git when they get EXDEV: the tree comes out the same.
	require.NoError(t, unix.Mount("overlay", e.P("om"), "overlay", 0,
		fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", e.P("l"), e.P("ou"), e.P("ow"))))
	t.Cleanup(func() { unix.Unmount(e.P("om"), unix.MNT_DETACH) })
	m := e.Mount(e.RW())

	for _, root := range []string{e.P("om"), m.Point} {
		work(t, e, root)
	}
	opts := harness.DumpOptions{Skip: notComparable}
	want, got := harness.Dump(t, e.P("om"), opts), harness.Dump(t, m.Point, opts)
	require.NotEmpty(t, want)
	require.Equal(t, want, got)
	m = m.Remount(e.RW())
	require.Equal(t, want, harness.Dump(t, m.Point, opts), "after a remount")
	if harness.MountOptions() != "" { // it may have stubs
		r := e.Layerfs("settle", m.Point)
		require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
		t.Log(r.Stdout)
		require.Equal(t, want, harness.Dump(t, m.Point, opts), "settled")
		m = m.Remount(e.RW())
		require.Equal(t, want, harness.Dump(t, m.Point, opts), "settled, after a remount")
	}
	require.Equal(t, before, harness.Dump(t, e.P("l"), harness.DumpOptions{Times: true}), "the lower is untouched")
}

// debianRoot returns a tar of Debian's minbase, made once and kept in
// $LAYERFS_CACHE.
func debianRoot(t *testing.T) string {
	t.Helper()
	harness.RequireTool(t, "mmdebstrap", "mmdebstrap")
	cache := os.Getenv("LAYERFS_CACHE")
	if cache == "" {
		cache = "/var/cache/layerfs"
	}
	require.NoError(t, os.MkdirAll(cache, 0755))
	tar := filepath.Join(cache, "minbase.tar")
	if exists(tar) {
		return tar
	}
	out, err := exec.Command("mmdebstrap", "--quiet", "--format=tar", "--variant=minbase", "bookworm", tar+".new").CombinedOutput()
	if err != nil {
		os.Remove(tar + ".new")
		t.Skipf("mmdebstrap cannot make a root (no network?): %v: %s", err, tail(string(out)))
	}
	require.NoError(t, os.Rename(tar+".new", tar))
	return tar
}

func tail(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// prepareSource puts a small C program into a git repository in the root.
func prepareSource(t *testing.T, e *harness.Env) {
	t.Helper()
	harness.RequireTool(t, "git", "git")
	var c strings.Builder
	for i := 0; i < 20; i++ {
		name := fmt.Sprintf("f%d", i)
		e.Tree("l/srv/src", fmt.Sprintf("%s.c=\n", name))
		write(t, e.P("l/srv/src", name+".c"), fmt.Sprintf("int %s(void) { return %d; }\n", name, i))
		fmt.Fprintf(&c, "int %s(void);\n", name)
	}
	write(t, e.P("l/srv/src/main.c"), c.String()+"#include <stdio.h>\nint main(void) { printf(\"%d\\n\", f19() + f1()); return 0; }\n")
	write(t, e.P("l/srv/src/Makefile"), "prog: $(patsubst %.c,%.o,$(wildcard *.c))\n\tgcc -o $@ $^\n")
	e.Sh(`cd l/srv/src; export GIT_CONFIG_NOSYSTEM=1 HOME=/nowhere
		export GIT_AUTHOR_DATE=@1600000000 GIT_COMMITTER_DATE=@1600000000
		git init -q; git add .; git -c user.name=t -c user.email=t@t commit -qm all`)
}

// work is what is done in the root.
func work(t *testing.T, e *harness.Env, root string) {
	t.Helper()
	script := `export DEBIAN_FRONTEND=noninteractive LC_ALL=C HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
set -e
apt-get -qq update || exit 66
apt-get -qq install -y --no-install-recommends gcc libc6-dev make git >/dev/null || exit 66
git clone -q file:///srv/src /root/src
cd /root/src && make -s -j2 && test "$(./prog)" = 20
cd / && dpkg --purge --force-depends make >/dev/null
rm -rf /srv/src && mkdir -p /srv/src && mv /srv /srv2 && mv /srv2 /srv
test ! -e /usr/bin/make && test -z "$(ls -A /srv/src)"
mv /usr/share/zoneinfo /usr/share/zi
chown -R 1:1 /usr/share/zi
rm -rf /usr/share/doc
ln /etc/debian_version /etc/debian_version2 && echo x >>/etc/debian_version2
`
	r := e.Cmd(func(c *exec.Cmd) { c.Env = os.Environ() }, "unshare", "-m", "--propagation", "private", "sh", "-ec", `
		mount -t proc proc "$1/proc"; mount --bind /dev "$1/dev"
		exec chroot "$1" /bin/sh -c "$2"`, "sh", root, script)
	if r.Code == 66 {
		t.Skipf("no packages to be had (no network?): %s", tail(r.Stderr))
	}
	require.Zero(t, r.Code, "%s\n%s", tail(r.Stdout), r.Stderr)
}

// notComparable are files that hold a time or a random number.
func notComparable(rel string) bool {
	for _, p := range []string{"var/log/", "var/cache/", "var/lib/apt/", "tmp/", "run/", "root/src/.git/index", "root/src/.git/logs", "etc/machine-id", "var/lib/dpkg/lock", "var/lib/dpkg/triggers/Lock", "usr/share/info/dir"} {
		if strings.HasPrefix(rel, p) || rel == strings.TrimSuffix(p, "/") {
			return true
		}
	}
	return strings.HasSuffix(rel, ".cache") || strings.HasSuffix(rel, "-old")
}
