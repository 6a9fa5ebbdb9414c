package pool

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// serve offers the pool over NBD until the test ends and returns the address
// of a device.
func serve(e *harness.Env) func(device string) string {
	e.T.Helper()
	cmd := exec.Command(harness.Bin(), "pool", "serve", e.P("p"), "--nbd", "unix:"+e.P("s"))
	require.NoError(e.T, cmd.Start())
	e.T.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		require.NoError(e.T, cmd.Wait(), "serve must end well")
		gone(e)
	})
	require.True(e.T, harness.Eventually(harness.Moment, func() bool {
		_, err := os.Stat(e.P("s"))
		return err == nil
	}))
	return func(device string) string { return fmt.Sprintf("nbd+unix:///%s?socket=%s", device, e.P("s")) }
}

func TestNBDClients(t *testing.T) {
	harness.RequireTool(t, "nbdinfo", "libnbd-bin")
	harness.RequireTool(t, "qemu-img", "qemu-utils")
	harness.RequireTool(t, "fio", "fio")
	e := harness.New(t)
	ok(e, "pool", "create", e.P("p"), "--data-size", "2G")
	for _, name := range []string{"a", "b"} {
		ok(e, "thin", "create", e.P("p"), name, "--size", "128M")
	}
	uri := serve(e)
	a, b := uri("a"), uri("b")

	info := e.Sh("nbdinfo '" + a + "'")
	for _, want := range []string{"export-size: 134217728", "can_flush: true", "can_fua: true", "can_trim: true", "can_zero: true",
		"can_multi_conn: true", "base:allocation", "block_size_minimum: 1", "block_size_preferred: 65536"} {
		require.Contains(t, info, want)
	}
	require.Contains(t, e.Sh("nbdinfo --list '"+uri("")+"'"), `export="b"`)

	// An image with holes goes in and comes out as it was, holes included.
	e.Sh(`truncate -s 128M img; head -c 5M /dev/urandom | dd of=img bs=1M seek=3 conv=notrunc status=none
	      head -c 100 /dev/urandom | dd of=img bs=1 seek=100000000 conv=notrunc status=none`)
	e.Sh("nbdcopy img '" + a + "'")
	e.Sh("qemu-img compare -f raw -F raw img '" + a + "'")
	e.Sh("qemu-img convert -n -f raw -O raw img '" + b + "'")
	e.Sh("nbdcopy '" + b + "' back; cmp img back")
	require.Contains(t, e.Sh("qemu-img map -f raw --output=json '"+a+"'"), `"start": 3145728, "length": 5242880, "depth": 0, "present": true, "zero": false, "data": true`)
	require.Contains(t, e.Sh("qemu-img info '"+a+"'"), "virtual size: 128 MiB")

	e.Sh("qemu-io -f raw -c 'write -P 7 0 1M' -c 'write -f -P 8 100000 512' -c 'read -P 7 0 100000' -c 'read -P 8 100000 512'" +
		" -c 'discard 0 128K' -c 'read -P 0 0 128K' -c 'write -z 300K 100K' -c 'read -P 0 300K 100K' -c 'read -P 7 400K 100K'" +
		" -c 'write -z -u 512K 128K' -c 'read -P 0 512K 128K' -c flush '" + a + "' | tee io; ! grep -i fail io")
	for _, mode := range []string{"randwrite", "write"} {
		e.Sh("fio --name=v --ioengine=nbd --uri='" + b + "' --rw=" + mode + " --bsrange=512-128k --bs_unaligned=0 --size=100% --io_size=64M" +
			" --iodepth=8 --verify=crc32c --verify_fatal=1 --serialize_overlap=1 >fio.log 2>&1 || { cat fio.log; false; }")
	}
	// A snapshot that is taken from outside shows what was answered.
	e.Sh("qemu-io -f raw -c 'write -P 9 0 64K' '" + a + "'")
	ok(e, "thin", "snap", e.P("p"), "a", "s")
	e.Sh("qemu-io -f raw -c 'write -P 1 0 64K' '" + a + "'")
	e.Sh("qemu-io -f raw -c 'read -P 9 0 64K' '" + uri("s") + "' | tee io; ! grep -i fail io")
}

// A pool process that dies under its clients costs them a pause.
func TestServerLosesPool(t *testing.T) {
	harness.RequireTool(t, "fio", "fio")
	e := harness.New(t)
	ok(e, "pool", "create", e.P("p"), "--data-size", "2G")
	ok(e, "thin", "create", e.P("p"), "a", "--size", "64M")
	uri := serve(e)
	cmd := exec.Command("fio", "--name=v", "--ioengine=nbd", "--uri="+uri("a"), "--rw=randwrite", "--bs=16k", "--size=100%",
		"--iodepth=4", "--verify=crc32c", "--verify_fatal=1", "--fsync=64")
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	kills := 0
	for {
		select {
		case err := <-done:
			require.NoError(t, err, log.String())
			require.NotZero(t, kills)
			t.Logf("%d kills", kills)
			return
		case <-time.After(70 * time.Millisecond):
		}
		kills += killServing(e.P("p"))
	}
}

// poolProcesses are the processes that own the pool, not those that use it.
func poolProcesses(pool string) (pids []int) {
	for _, pid := range harness.Daemons(pool) {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(line), "pool-process\x00") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// detach unmounts what a test that failed has left.
func detach(e *harness.Env, point string) {
	if harness.Mounted(e.P(point)) {
		harness.Detach(e.T, e.P(point))
	}
}

// mountPool mounts the pool's devices on m.
func mountPool(e *harness.Env) (unmount func()) {
	e.T.Helper()
	require.NoError(e.T, os.MkdirAll(e.P("m"), 0o700))
	ok(e, "pool", "mount", e.P("p"), e.P("m"))
	e.T.Cleanup(func() { detach(e, "m") })
	return func() {
		e.T.Helper()
		ok(e, "umount", e.P("m"))
		gone(e)
	}
}

// An ordinary user has ext4 in a thin device with fuse2fs, and snapshots of it.
func TestFuse2fs(t *testing.T) {
	harness.RequireFUSE(t)
	harness.RequireTool(t, "fuse2fs", "fuse2fs")
	e := harness.New(t)
	ok(e, "pool", "create", e.P("p"), "--data-size", "2G")
	ok(e, "thin", "create", e.P("p"), "base", "--size", "512M")
	unmount := mountPool(e)
	e.Sh("mkfs.ext4 -q m/base; mkdir fs; fuse2fs m/base fs -o fakeroot")
	t.Cleanup(func() { detach(e, "fs") })
	e.Sh("echo hello > fs/hello; cp -r /usr/share/common-licenses fs/; fusermount3 -u fs || umount fs")
	require.True(t, harness.Eventually(harness.Moment, func() bool { return len(harness.Daemons("m/base")) == 0 }))
	e.Sh("e2fsck -fn m/base >/dev/null")
	require.True(t, harness.Eventually(harness.Moment, func() bool { return e.Layerfs("thin", "snap", e.P("p"), "base", "c1").Code == 0 }))
	e.Sh("fuse2fs m/c1 fs -o fakeroot; grep -q hello fs/hello; echo changed > fs/hello; fusermount3 -u fs || umount fs")
	require.True(t, harness.Eventually(harness.Moment, func() bool { return len(harness.Daemons("m/c1")) == 0 }))
	e.Sh("fuse2fs m/base fs -o ro,fakeroot; grep -q hello fs/hello; fusermount3 -u fs || umount fs")
	require.True(t, harness.Eventually(harness.Moment, func() bool { return len(harness.Daemons("m/base")) == 0 }))
	unmount()
}

// Kernel ext4 and xfs through a loop device: mounted, written, trimmed, and
// clean, also when the pool's process is killed meanwhile.
func TestLoop(t *testing.T) {
	harness.RequireRoot(t)
	for _, fs := range []struct{ name, mkfs, check string }{
		{"ext4", "mkfs.ext4 -q", "e2fsck -fn"}, {"xfs", "mkfs.xfs -q", "xfs_repair -n"},
	} {
		t.Run(fs.name, func(t *testing.T) {
			harness.RequireTool(t, "mkfs."+fs.name, fs.name)
			e := harness.New(t)
			ok(e, "pool", "create", e.P("p"), "--data-size", "2G")
			ok(e, "thin", "create", e.P("p"), "disk", "--size", "512M")
			unmount := mountPool(e)
			e.Sh(fs.mkfs + " m/disk; mkdir fs; mount -o loop m/disk fs")
			t.Cleanup(func() { _ = unix.Unmount(e.P("fs"), unix.MNT_DETACH) })
			stop := make(chan struct{})
			ended := make(chan int)
			go func() { ended <- killOften(e.P("p"), stop) }()
			e.Sh("for i in 1 2 3 4; do mkdir fs/$i; cp -r /usr/share/doc/a* fs/$i; sync -f fs; sleep 0.3; done; head -c 30M /dev/urandom > fs/big; sync -f fs")
			close(stop)
			require.NotZero(t, <-ended)
			before := mapped(t, e, "disk")
			e.Sh("for d in /usr/share/doc/a*; do diff -r $d fs/4/${d##*/}; done; sha256sum fs/big > sum; rm fs/big; sync -f fs; fstrim fs; umount fs")
			require.Less(t, mapped(t, e, "disk"), before, "fstrim must free blocks")
			e.Sh(fs.check + " m/disk >/dev/null 2>&1")
			unmount()
			ok(e, "pool", "check", e.P("p"))
		})
	}
}

func killOften(pool string, stop chan struct{}) (kills int) {
	for {
		select {
		case <-stop:
			return kills
		case <-time.After(100 * time.Millisecond):
		}
		kills += killServing(pool)
	}
}

// killServing kills the pool's process if it is at work. One that is killed
// again and again before it has opened the pool is rightly taken for one
// that cannot.
func killServing(pool string) int {
	conn, err := net.Dial("unix", filepath.Join(pool, "socket"))
	if err != nil {
		return 0
	}
	conn.Close()
	n := 0
	for _, pid := range poolProcesses(pool) {
		if unix.Kill(pid, unix.SIGKILL) == nil {
			n++
		}
	}
	return n
}

// mapped returns how many sectors the device maps, as its status line says.
func mapped(t *testing.T, e *harness.Env, name string) (n int) {
	t.Helper()
	_, err := fmt.Sscanf(ok(e, "thin", "status", e.P("p"), name), "0 1048576 thin %d", &n)
	require.NoError(t, err)
	return n
}
