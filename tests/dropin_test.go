package tests

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// The contract of fuse-overlayfs as its callers rely on it: a test per line
// of the checklist that was measured with podman, buildah, containerd and
// mount(8).

func TestDropInArguments(t *testing.T) {
	for name, args := range map[string]string{
		"options first":             "-o RW MNT",
		"mountpoint first":          "MNT -o RW",
		"source, mountpoint":        "src MNT -o RW",
		"as mount.fuse3 calls":      "none MNT -o rw,RW,dev,suid",
		"attached -oX":              "-oRW MNT",
		"several -o":                "-o lowerdir=L -o upperdir=U -o workdir=W MNT",
		"last positional wins":      "a b c MNT -o RW",
		"trailing comma":            "-o RW, MNT",
		"double comma":              "-o RW,,volatile MNT",
		"leading comma":             "-o ,RW MNT",
		"read-only":                 "-o lowerdir=L MNT",
		"private":                   "-o lowerdir=L:L2,private MNT",
		"empty lower in the middle": "-o lowerdir=L::L2,upperdir=U,workdir=W MNT",
		"leading colon in mappings": "-o RW,uidmapping=:0:0:65536,gidmapping=:0:0:65536 MNT",
		"context with a comma":      `-o RW,context="system_u:object_r:container_file_t:s0:c1,c2" MNT`,
		"unknown option":            "-o RW,nosuchoption=3,nosuchflag MNT",
		"unknown flag":              "--no-such-flag -o RW MNT",
		"all that fuse-overlayfs takes": "-o RW,volatile,fsync=0,squash_to_root,xattr_permissions=0,static_nlink,noacl," +
			"xino=auto,timeout=10,writeback=0,threaded=1,fast_ino=0,plugins=,redirect_dir=off,userxattr,index=off,metacopy=off," +
			"rw,atime,diratime,nodiratime,exec,max_write=131072,fsname=x,nofail,user,_netdev,default_permissions,xino=off MNT",
	} {
		t.Run(name, func(t *testing.T) {
			e := harness.New(t).Tree("l", "a=1").Tree("l2", "b=2")
			args := strings.NewReplacer("RW", e.RW(), "MNT", e.P("m"), "L2", e.P("l2"), "L", e.P("l"), "U", e.P("u"), "W", e.P("w")).Replace(args)
			harness.RequireFUSE(t)
			r := e.Layerfs(strings.Fields(args)...)
			require.Zero(t, r.Code, r.Stderr)
			m := e.Adopt(e.P("m"))
			require.Equal(t, "1", read(t, m.P("a")))
			if strings.HasPrefix(name, "unknown") {
				require.Equal(t, strings.Count(args, "such"), strings.Count(strings.TrimSpace(r.Stderr), "\n")+1, "a line for each: %q", r.Stderr)
			} else if !strings.HasPrefix(name, "context") {
				require.Empty(t, r.Stderr)
			}
			require.Empty(t, r.Stdout)
		})
	}
}

func TestDropInEscapes(t *testing.T) {
	e := harness.New(t)
	e.Tree("a:b", "colon=1").Tree("c,d", "comma=2").Tree(`e\f`, "backslash=3")
	m := e.Mount(`lowerdir=` + e.P(`a\:b`) + ":" + e.P(`c\,d`) + ":" + e.P(`e\\f`))
	require.Equal(t, []string{"backslash=3", "colon=1", "comma=2"}, harness.Names(t, m.Point))
}

func TestDropInRelativePathsAndSymlinks(t *testing.T) {
	e := harness.New(t).Tree("l", "a=1").Tree("l2", "b=2")
	harness.RequireFUSE(t)
	require.NoError(t, os.Mkdir(e.P("links"), 0755))
	require.NoError(t, os.Symlink("../l", e.P("links/A")))
	require.NoError(t, os.Symlink("m", e.P("mlink")))
	r := e.Layerfs("-o", "lowerdir=links/A:l2,upperdir=u,workdir=w", "mlink")
	require.Zero(t, r.Code, r.Stderr)
	require.True(t, harness.Mounted(e.P("m")), "mounted where the link leads")
	pids := harness.Daemons("mlink")
	require.Len(t, pids, 1, "the daemon keeps its full argv")
	t.Cleanup(func() { unix.Kill(pids[0], unix.SIGTERM) })
	// The links may go once the mount is live, as containers-storage's do.
	require.NoError(t, os.RemoveAll(e.P("links")))
	require.Equal(t, "1", read(t, e.P("m", "a")))
	write(t, e.P("m", "new"), "x")
	require.Equal(t, "x", read(t, e.P("u", "new")))
	// A relative mountpoint must still be found by the signal.
	require.NoError(t, unix.Kill(pids[0], unix.SIGTERM))
	require.True(t, harness.Eventually(2*time.Second, func() bool { return !harness.Alive(pids[0]) && !harness.Mounted(e.P("m")) }))
}

func TestDropInVersionAndHelp(t *testing.T) {
	e := harness.New(t)
	for _, arg := range []string{"--version", "-V", "--help", "-h"} {
		r := e.Layerfs(arg)
		require.Zero(t, r.Code, arg)
		require.NotEmpty(t, r.Stdout, arg)
		require.Empty(t, r.Stderr, arg)
	}
	r := e.Layerfs("--version", "-o", e.RW(), e.P("m"))
	require.Zero(t, r.Code)
	require.False(t, harness.Mounted(e.P("m")), "--version mounts nothing")
}

func TestDropInRefuses(t *testing.T) {
	e := harness.New(t)
	write(t, e.P("file"), "")
	for name, c := range map[string]struct{ opts, mnt, names string }{
		"no lowerdir":                {"upperdir=" + e.P("u") + ",workdir=" + e.P("w"), "m", "lowerdir"},
		"no options":                 {"", "m", "lowerdir"},
		"no mountpoint":              {"lowerdir=" + e.P("l"), "", "mountpoint"},
		"missing lower":              {"lowerdir=" + e.P("nolower"), "m", "nolower"},
		"missing upper":              {"lowerdir=" + e.P("l") + ",upperdir=" + e.P("noupper") + ",workdir=" + e.P("w"), "m", "noupper"},
		"missing work":               {"lowerdir=" + e.P("l") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("nowork"), "m", "nowork"},
		"missing mountpoint":         {"lowerdir=" + e.P("l"), "nomnt", "nomnt"},
		"lower is a file":            {"lowerdir=" + e.P("file"), "m", "file"},
		"mountpoint is a file":       {"lowerdir=" + e.P("l"), "file", "file"},
		"upper without work":         {"lowerdir=" + e.P("l") + ",upperdir=" + e.P("u"), "m", "workdir"},
		"mapping of two numbers":     {"lowerdir=" + e.P("l") + ",uidmapping=0:1", "m", "uidmapping"},
		"mapping that is no number":  {"lowerdir=" + e.P("l") + ",gidmapping=a:b:c", "m", "gidmapping"},
		"xattr_permissions=3":        {"lowerdir=" + e.P("l") + ",xattr_permissions=3", "m", "xattr_permissions"},
		"timeout that is no number":  {"lowerdir=" + e.P("l") + ",timeout=soon", "m", "timeout"},
		"squash_to_uid out of range": {"lowerdir=" + e.P("l") + ",squash_to_uid=99999999999", "m", "squash_to_uid"},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"-o", c.opts}
			if c.mnt != "" {
				args = append(args, e.P(c.mnt))
			}
			r := e.Layerfs(args...)
			require.Equal(t, 1, r.Code, "the drop-in's only failure: %s", r.Stderr)
			require.Contains(t, r.Stderr, c.names)
			require.Equal(t, 1, strings.Count(r.Stderr, "\n"), "one line: %q", r.Stderr)
			require.Empty(t, r.Stdout)
			require.False(t, harness.Mounted(e.P("m")), "nothing stays mounted")
			require.Empty(t, harness.Daemons(e.P("m")), "no daemon stays")
		})
	}
}

// os/exec, as podman uses it, waits for the end of every pipe it made.
func TestDropInReleasesItsOutput(t *testing.T) {
	e := harness.New(t)
	harness.RequireFUSE(t)
	r := e.Cmd(nil, "timeout", "5", "sh", "-c", `"$1" -o lowerdir=l m 2>&1 | cat`, "sh", harness.Bin())
	require.Zero(t, r.Code, "hangs: the daemon keeps the pipe")
	require.Less(t, r.Took, 4*time.Second)
	exec.Command("fusermount3", "-u", e.P("m")).Run()
	require.True(t, harness.Eventually(2*time.Second, func() bool { return !harness.Mounted(e.P("m")) }))
}

func TestDropInClosesInheritedDescriptors(t *testing.T) {
	e := harness.New(t)
	harness.RequireFUSE(t)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	res := e.Cmd(func(c *exec.Cmd) {
		c.ExtraFiles = []*os.File{nil, nil, w, nil, nil, nil, w}
	}, harness.Bin(), "-o", e.RW(), e.P("m"))
	require.Zero(t, res.Code, res.Stderr)
	w.Close()
	e.Adopt(e.P("m"))
	require.NoError(t, r.SetReadDeadline(time.Now().Add(3*time.Second)))
	_, err = r.Read(make([]byte, 1))
	require.EqualError(t, err, "EOF", "the daemon holds a descriptor that it inherited")
}

func TestDropInDaemon(t *testing.T) {
	e := harness.New(t)
	m := e.Mount(e.RW())
	stat := strings.Fields(read(t, fmt.Sprintf("/proc/%d/stat", m.Pid)))
	require.Equal(t, fmt.Sprint(m.Pid), stat[5], "a session of its own")
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", m.Pid))
	require.NoError(t, err)
	require.Equal(t, "/", cwd)
	for fd := 0; fd <= 2; fd++ {
		f, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", m.Pid, fd))
		require.NoError(t, err)
		require.Equal(t, "/dev/null", f, "fd %d", fd)
	}
	require.Contains(t, read(t, fmt.Sprintf("/proc/%d/status", m.Pid)), "Umask:\t0000")
	argv := strings.Split(strings.TrimRight(read(t, fmt.Sprintf("/proc/%d/cmdline", m.Pid)), "\x00"), "\x00")
	require.Equal(t, []string{harness.Bin(), "-o", e.RW(), e.P("m")}, argv, "the full original argv")
}

// umask(0) in the daemon: modes are the caller's business alone.
func TestDropInUmask(t *testing.T) {
	e := harness.New(t)
	m := e.Mount(e.RW())
	e.Sh(fmt.Sprintf("umask 0; cd %s; mkdir d; : >f; umask 077; mkdir e; : >g", m.Point))
	for name, mode := range map[string]uint32{"d": 0777, "f": 0666, "e": 0700, "g": 0600} {
		require.Equal(t, mode, harness.Stat(t, m.P(name)).Mode&07777, name)
		require.Equal(t, mode, harness.Stat(t, e.P("u", name)).Mode&07777, name)
	}
}

func TestDropInMountIsLiveOnReturn(t *testing.T) {
	e := harness.New(t).Tree("l", "a=1")
	for i := 0; i < 20; i++ {
		m := e.Mount(e.RW())
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(m.Point, &st))
		require.EqualValues(t, 0x65735546, st.Type, "podman looks for FUSE's magic number")
		require.FileExists(t, m.P("a"))
		m.Unmount()
	}
}

func TestDropInMountInfo(t *testing.T) {
	e := harness.New(t)
	m := e.Mount(e.RW())
	text := strings.Join(harness.MountInfo(m.Point), " ")
	require.Contains(t, text, " - fuse.layerfs ")
	require.NotContains(t, text, "lowerdir", "the option string may be longer than a page")
	require.Contains(t, text, "default_permissions")
	m.Unmount()
	m = e.Mount("lowerdir=" + e.P("l") + ",ro,nosuid,nodev,noexec,noatime")
	flags := "," + harness.MountInfo(m.Point)[5] + ","
	for _, f := range []string{"ro", "nosuid", "nodev", "noexec", "noatime"} {
		require.Contains(t, flags, ","+f+",")
	}
	m.Unmount()
	if !harness.Root() {
		return
	}
	m = e.Mount(e.RW())
	flags = harness.MountInfo(m.Point)[5]
	require.NotContains(t, flags, "nosuid", "a container's root needs setuid programs")
	require.NotContains(t, flags, "nodev")
	require.Contains(t, strings.Join(harness.MountInfo(m.Point), " "), "allow_other")
}

func TestDropInEndsWithItsMount(t *testing.T) {
	for _, how := range []string{"fusermount3 -u", "umount", "umount -l", "fusermount3 -uz"} {
		t.Run(how, func(t *testing.T) {
			if strings.HasPrefix(how, "umount") && !harness.Root() {
				t.Skip("root only: umount(8) of a FUSE mount")
			}
			e := harness.New(t)
			m := e.Mount(e.RW())
			write(t, m.P("f"), "x")
			start := time.Now()
			e.Sh(how + " " + m.Point)
			require.True(t, harness.Eventually(2*time.Second, func() bool { return !harness.Alive(m.Pid) }))
			require.Less(t, time.Since(start), 500*time.Millisecond)
			require.NoError(t, os.Remove(m.Point), "podman removes the directory at once")
			m.Unmount()
		})
	}
}

func TestDropInBusyUnmount(t *testing.T) {
	e := harness.New(t)
	m := e.Mount(e.RW())
	f, err := os.Create(m.P("f"))
	require.NoError(t, err)
	r := e.Cmd(nil, "fusermount3", "-u", m.Point)
	require.NotZero(t, r.Code, "a busy mount stays")
	require.Zero(t, e.Cmd(nil, "fusermount3", "-uz", m.Point).Code)
	_, err = f.WriteString("still served")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.True(t, harness.Eventually(2*time.Second, func() bool { return !harness.Alive(m.Pid) }))
	require.Equal(t, "still served", read(t, e.P("u", "f")))
}

func TestDropInSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			e := harness.New(t)
			m := e.Mount(e.RW())
			f, err := os.Create(m.P("open"))
			require.NoError(t, err)
			defer f.Close()
			require.NoError(t, syscall.Kill(m.Pid, sig))
			require.True(t, harness.Eventually(2*time.Second, func() bool { return !harness.Alive(m.Pid) }), "ends, files open or not")
			require.False(t, harness.Mounted(m.Point), "unmounts")
			m.Died()
		})
	}
	for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGPIPE} {
		t.Run(sig.String(), func(t *testing.T) {
			e := harness.New(t)
			m := e.Mount(e.RW())
			require.NoError(t, syscall.Kill(m.Pid, sig))
			time.Sleep(100 * time.Millisecond)
			require.True(t, harness.Alive(m.Pid), "stays")
			write(t, m.P("f"), "x")
		})
	}
	t.Run("KILL", func(t *testing.T) {
		e := harness.New(t)
		m := e.Mount(e.RW())
		require.NoError(t, syscall.Kill(m.Pid, syscall.SIGKILL))
		require.True(t, harness.Eventually(2*time.Second, func() bool {
			_, err := os.Stat(m.P("f"))
			return err != nil && errno(err) == unix.ENOTCONN
		}))
		e.Sh("fusermount3 -u " + m.Point)
		m.Died()
		// The next mount finds the lock free and cleans what is left.
		e.Mount(e.RW())
	})
}

func TestDropInForeground(t *testing.T) {
	e := harness.New(t)
	harness.RequireFUSE(t)
	cmd := exec.Command(harness.Bin(), "-f", "-o", e.RW(), e.P("m"))
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill() })
	require.True(t, harness.Eventually(2*time.Second, func() bool { return harness.Mounted(e.P("m")) }), "Apptainer gives up after 2 s")
	write(t, e.P("m", "f"), "x")
	e.Sh("fusermount3 -u " + e.P("m"))
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		require.NoError(t, err, "-f and umount: exit 0")
	case <-time.After(500 * time.Millisecond):
		t.Fatal("does not end within 0.5 s")
	}
}

func TestDropInSecondReadOnlyMount(t *testing.T) {
	e := harness.New(t).Tree("l", "a=1")
	m := e.Mount(e.RW())
	write(t, m.P("f"), "x")
	f, err := os.Create(m.P("running"))
	require.NoError(t, err)
	defer f.Close()
	before := harness.Dump(t, e.P("w"), harness.DumpOptions{Times: true})
	require.NoError(t, os.Mkdir(e.P("m2"), 0755))
	// No Adopt with the work directory: that one belongs to the first.
	r := e.Layerfs("-o", e.RW("ro"), e.P("m2"))
	require.Zero(t, r.Code, r.Stderr)
	require.Less(t, r.Took, time.Second, "takes no lock")
	m2 := e.Adopt(e.P("m2"))
	require.Equal(t, "x", read(t, m2.P("f")))
	wantErrno(t, unix.EROFS, os.WriteFile(m2.P("g"), nil, 0644))
	write(t, m.P("later"), "y")
	require.Equal(t, "y", read(t, m2.P("later")), "caches nothing for good")
	require.NoError(t, os.Remove(m.P("later")))
	require.Equal(t, before, harness.Dump(t, e.P("w"), harness.DumpOptions{Times: true}), "a ro mount does not touch the work directory")
}

func TestDropInManyLowers(t *testing.T) {
	e := harness.New(t)
	harness.RequireFUSE(t)
	var lowers []string
	for i := 0; i < 500; i++ {
		e.Tree(fmt.Sprintf("n/%d", i), fmt.Sprintf("f%d=%d", i, i))
		lowers = append(lowers, e.P("n", fmt.Sprint(i)))
	}
	opts := "lowerdir=" + strings.Join(lowers, ":") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w")
	r := e.Layerfs("-o", opts, e.P("m"))
	require.Zero(t, r.Code, r.Stderr)
	require.Less(t, r.Took, 2*time.Second)
	m := e.Adopt(e.P("m"))
	require.Len(t, harness.Names(t, m.Point), 500)
	require.Equal(t, "499", read(t, m.P("f499")))
	write(t, m.P("f499"), "changed")
	require.Equal(t, "changed", read(t, e.P("u", "f499")))
}

// Lowers that are unmounted right after the program returns stay usable:
// they are held by descriptor.
func TestDropInHoldsItsLowers(t *testing.T) {
	harness.RequireRoot(t)
	e := harness.New(t).Tree("src", "a=1\nd/b=2")
	e.Sh("mount --bind src l")
	m := e.Mount(e.RW())
	e.Sh("umount -l l")
	require.Equal(t, "2", read(t, m.P("d", "b")))
	write(t, m.P("d", "b"), "3")
	require.Equal(t, "3", read(t, m.P("d", "b")))
	require.Equal(t, "2", read(t, e.P("src", "d", "b")))
}

// TestMountHelpers runs mount(8) where /sbin/mount.fuse.layerfs is ours.
func TestMountHelpers(t *testing.T) {
	harness.RequireRoot(t)
	harness.RequireFUSE(t)
	harness.RequireTool(t, "unshare", "util-linux")
	e := harness.New(t).Tree("l", "a=1\nb/c=2")
	for name, script := range map[string]string{
		"mount -t fuse.layerfs": `mount -t fuse.layerfs none "$D/m" -o "$RW"`,
		"mount -t layerfs":      `mount -t layerfs none "$D/m" -o "$RW,nofail,_netdev"`,
		"an fstab line": `echo "thesource $D/m fuse.layerfs $RW,noauto,nofail,x-systemd.automount 0 0" >"$D/fstab"
			mount -T "$D/fstab" "$D/m"; grep -q " thesource " /proc/self/mountinfo`,
		"mount -a": `echo "thesource $D/m fuse.layerfs $RW 0 0" >"$D/fstab"
			mount -a -T "$D/fstab"; mount -a -T "$D/fstab"; test $(grep -c " $D/m " /proc/self/mountinfo) = 1`,
		"read-only": `mount -t fuse.layerfs none "$D/m" -o "ro,lowerdir=$D/l"; ! touch "$D/m/x" 2>/dev/null; touchable=no`,
		// It used to mount a second time on top (xfstests generic/294, 306, 452).
		"remount": `mount -t fuse.layerfs none "$D/m" -o "$RW"; mount -o remount,ro,noexec "$D/m"
			test $(grep -c " $D/m " /proc/self/mountinfo) = 1; grep " $D/m " /proc/self/mountinfo | grep -q " ro,.*noexec"
			! touch "$D/m/x" 2>/dev/null || exit 1; mount -o remount,rw "$D/m"`,
		"fake mounts nothing":           `mount -f -t fuse.layerfs none "$D/m" -o "$RW"; ! grep -q " $D/m " /proc/self/mountinfo; exit 0`,
		"without helper, by mount.fuse": `rm "$D/sbin/mount.fuse.layerfs"; mount -t fuse.layerfs none "$D/m" -o "$RW"`,
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(name, "without") {
				harness.RequireTool(t, "/sbin/mount.fuse", "fuse3")
			}
			// In a private mount namespace /sbin is a copy with our links, so
			// that the machine stays as it is. mount(8) gives its helpers a
			// PATH of its own; the plain name is for mount.fuse to find there.
			r := e.Cmd(func(c *exec.Cmd) {
				c.Env = append(os.Environ(), "D="+e.Dir, "RW="+e.RW(), "BIN="+harness.Bin())
			}, "unshare", "-m", "--propagation", "private", "sh", "-ec", `
				sbin=$(readlink -f /sbin)
				mkdir -p "$D/sbin"; cp -a "$sbin/." "$D/sbin/"
				ln -sf "$BIN" "$D/sbin/mount.layerfs"; ln -sf "$BIN" "$D/sbin/mount.fuse.layerfs"; ln -sf "$BIN" "$D/sbin/layerfs"
				mount --bind "$D/sbin" "$sbin"
				touchable=yes
				`+script+`
				grep -q " $D/m .* - fuse.layerfs " /proc/self/mountinfo
				test "$(cat "$D/m/b/c")" = 2
				if [ $touchable = yes ]; then touch "$D/m/x"; test -e "$D/u/x"; rm "$D/m/x"; fi
				umount "$D/m"`)
			require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
			require.True(t, harness.Eventually(2*time.Second, func() bool { return len(harness.Daemons(e.P("m"))) == 0 }), "no daemon stays")
		})
	}
}

// A daemon started by an ordinary user goes through fusermount3.
func TestUserMount(t *testing.T) {
	e := harness.New(t)
	harness.RequireFUSE(t)
	for _, d := range []string{"u", "w", "m", "l"} {
		if harness.Root() {
			require.NoError(t, os.Chown(e.P(d), harness.Ordinary, harness.Ordinary))
		}
	}
	e.Tree("l", "a=1")
	// The mount is visible to its owner only: look with his eyes.
	script := fmt.Sprintf(`%s -o %s %s; cd %s; echo 2 >b; rm a; ls; cd /; fusermount3 -u %s; test -c %s -a -f %s`,
		harness.Bin(), e.RW(), e.P("m"), e.P("m"), e.P("m"), e.P("u", "a"), e.P("u", "b"))
	var as func(*exec.Cmd)
	if harness.Root() {
		as = harness.AsOrdinary
	}
	r := e.Cmd(as, "sh", "-ec", script)
	require.Zero(t, r.Code, r.Stderr)
	require.Equal(t, "b\n", r.Stdout)
	require.True(t, harness.Eventually(2*time.Second, func() bool { return len(harness.Daemons(e.P("m"))) == 0 }))
}

// In a user namespace mount(2) works without fusermount3.
func TestUserNamespaceMount(t *testing.T) {
	e := harness.New(t).Tree("l", "a=1\nd/b=2")
	harness.RequireFUSE(t)
	var as func(*exec.Cmd)
	if harness.Root() {
		for _, d := range []string{"u", "w", "m"} {
			require.NoError(t, os.Chown(e.P(d), harness.Ordinary, harness.Ordinary))
		}
		as = harness.AsOrdinary
	}
	if r := e.Cmd(as, "unshare", "-Urm", "true"); r.Code != 0 {
		harness.Lacking(t, "user namespaces are not to be had: %s", r.Stderr)
	}
	r := e.Cmd(as, "unshare", "-Urm", "sh", "-ec", fmt.Sprintf(`
		%s -o %s,squash_to_root %s; cd %s
		test $(stat -c %%u:%%g a) = 0:0; rm a; echo new >d/b; mv d d2; mkdir a; chmod 700 a
		cd /; umount %s`, harness.Bin(), e.RW(), e.P("m"), e.P("m"), e.P("m")))
	require.Zero(t, r.Code, r.Stderr)
	require.True(t, harness.Eventually(2*time.Second, func() bool { return len(harness.Daemons(e.P("m"))) == 0 }))
	require.DirExists(t, e.P("u", "a"))
	require.Equal(t, "new\n", read(t, e.P("u", "d2", "b")))
}
