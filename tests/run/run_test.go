package run

import (
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

// The machine's own root directory, changed from inside, is as it was.
func TestOnTheMachinesRoot(t *testing.T) {
	b := newBench(t)
	before, err := os.ReadFile("/etc/passwd")
	require.NoError(t, err)
	out := b.inside(`id -u; stat -c %u:%g /etc/passwd; echo changed >/etc/passwd; cat /etc/passwd; chmod 600 /etc/passwd
		rm -rf /usr/share/doc; ls /usr/share/doc 2>&1 || true; mv /etc/apt /etc/moved; touch /layerfs-test-new`)
	lines := strings.Split(out, "\n")
	require.Equal(t, []string{"0", "0:0", "changed"}, lines[:3])
	require.Contains(t, lines[3], "No such file")
	after, err := os.ReadFile("/etc/passwd")
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
	require.NoFileExists(t, "/layerfs-test-new")
	require.DirExists(t, "/etc/apt")
	require.DirExists(t, "/usr/share/doc")
	require.Equal(t, b.Dir+"\n", b.inside("pwd"), "the same place in it")
	require.Empty(t, b.inside("ls -A "+b.P("store")), "but not the store")
}

// What there is beside files.
func TestSurroundings(t *testing.T) {
	b := newBench(t)
	out := b.inside("cat /proc/self/comm /proc/1/comm; ls /proc | grep -c '^[0-9]'; ls /sys/class >/dev/null; echo x >/dev/null; ls -l /dev/fd/", b.onImage()...)
	require.Equal(t, []string{"cat", "layerfs", "4"}, strings.Fields(out)[:3], "a pid namespace: init, sh, ls, grep")
	b.inside(`test $(head -c 3 /dev/zero | wc -c) = 3; echo x >/dev/shm/f; test -c /dev/ptmx; test -c /dev/urandom; test ! -e /dev/sda
		test "$(script -qec tty /dev/null)" != "not a tty"; if echo x >/sys/kernel/x 2>/dev/null; then exit 1; fi`)
	for _, f := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		want, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		require.Equal(t, string(want), b.inside("cat "+f, b.onImage()...))
		b.inside("echo x >>"+f, b.onImage()...)
		now, err := os.ReadFile(f)
		require.NoError(t, err)
		require.Equal(t, string(want), string(now), "it was a copy")
	}
	b.Setenv("MINE", "yes")
	b.Setenv("HOME", "/not/there")
	require.Equal(t, "yes /root\n", b.inside(`echo $MINE $HOME`, b.onImage()...))
}

// What names of the network need is shown where a link leads to it, though that
// be nowhere.
func TestDanglingResolvConf(t *testing.T) {
	b := newBench(t)
	want, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Skip("this machine has none")
	}
	b.Sh("mkdir image/etc; ln -s ../run/systemd/resolve/stub-resolv.conf image/etc/resolv.conf")
	require.Equal(t, string(want), b.inside("cat /etc/resolv.conf", b.onImage("n")...))
	b.nothingChanged("n")
	b.Sh("ln -sfn /etc/resolv.conf image/etc/resolv.conf")
	r := b.run(b.onImage("n", "--", "true")...)
	require.Equal(t, 125, r.Code, "a circle")
	require.Contains(t, r.Stderr, "/etc/resolv.conf")
	b.Sh("rm -rf store")
}

func (b *bench) nothingChanged(name string) {
	b.T.Helper()
	require.Empty(b.T, b.Layerfs("changes", "--upper", b.P("store/runs", name, "upper"), "--lower", b.P("image")).Stdout)
}

// A root directory that lacks all that something is mounted on has it for that
// time only.
func TestPlacesAreMadeAndRemoved(t *testing.T) {
	b := newBench(t)
	b.Sh("mkdir vol; echo v >vol/f; touch -d 2001-02-03 image image/bin")
	require.Equal(t, "v\n", b.inside("cat /deep/down/vol/f; test -d /proc/1", b.onImage("-v", b.P("vol")+":/deep/down/vol", "n")...))
	b.nothingChanged("n")
	require.Equal(t, []string{"bin"}, strings.Fields(b.inside("ls / | grep -v -e proc -e sys -e dev -e etc", b.onImage("--rm", "n")...)))
}

func TestExitCodes(t *testing.T) {
	b := newBench(t)
	b.Sh("echo nothing >image/bin/script; chmod +x image/bin/script; touch file")
	for name, c := range map[string]struct {
		code int
		says string
		args []string
	}{
		"of the command":   {7, "", []string{"--", "sh", "-c", "exit 7"}},
		"a signal":         {128 + 15, "", []string{"--", "sh", "-c", "kill -TERM $$"}},
		"SIGKILL":          {128 + 9, "", []string{"--", "sh", "-c", "kill -KILL $$"}},
		"not there":        {127, "nosuch", []string{"--", "nosuch"}},
		"no path":          {127, "/not/there", []string{"--", "/not/there"}},
		"not executable":   {126, "/etc/hosts", []string{"--", "/etc/hosts"}},
		"no program":       {126, "script", []string{"--", "/bin/script"}},
		"a directory":      {126, "/bin", []string{"--", "/bin"}},
		"no command":       {125, "--", []string{"name"}},
		"nothing after --": {125, "command is missing", []string{"--"}},
		"two names":        {125, "b", []string{"a", "b", "--", "true"}},
		"bad name":         {125, "a/b", []string{"a/b", "--", "true"}},
		"unknown flag":     {125, "--nosuch", []string{"--nosuch", "--", "true"}},
		"missing lower":    {125, "gone", []string{"--lower", b.P("gone"), "--", "true"}},
		"lower is a file":  {125, "not a directory", []string{"--lower", b.P("file"), "--", "true"}},
		"bad volume":       {125, "HOST:PATH", []string{"-v", "x", "--", "true"}},
		"volume on /":      {125, "HOST:PATH", []string{"-v", "/etc:/", "--", "true"}},
		"missing volume":   {125, "gone", []string{"-v", b.P("gone") + ":/x", "--", "true"}},
		"file on a place":  {125, "/bin", []string{"-v", b.P("file") + ":/bin", "--", "true"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := b.run(b.onImage(c.args...)...)
			require.Equal(t, c.code, r.Code, r.Stderr)
			require.Contains(t, r.Stderr, c.says)
			require.Empty(t, b.left())
		})
	}
}

func TestVolumes(t *testing.T) {
	b := newBench(t)
	b.Sh("mkdir vol; echo one >vol/f; echo two >file")
	out := b.inside(`cat /vol/f /bin/file; echo new >/vol/g; echo changed >/bin/file
		if echo x >/ro/f; then exit 1; fi 2>/dev/null; cat /ro/f`,
		b.onImage("-v", b.P("vol")+":/vol", "-v", b.P("vol")+":/ro:ro", "-v", "file:/bin/file")...)
	require.Equal(t, "one\ntwo\none\n", out)
	require.Equal(t, "new\nchanged\n", b.Sh("cat vol/g file"), "they bypass the union")
	require.NoFileExists(t, b.P("image/bin/file"))
}

// With a name the changes are kept, and nobody else has them meanwhile.
func TestNamed(t *testing.T) {
	b := newBench(t)
	b.inside("echo 1 >/kept; rm /bin/id; mkdir -p /a/b", b.onImage("n")...)
	require.Equal(t, "1\n", b.inside("cat /kept; test ! -e /bin/id; test -d /a/b; rm -r /a", b.onImage("n")...))
	require.Equal(t, "C /bin\nD /bin/id\nA /kept\n", b.Layerfs("changes", "--upper", b.P("store/runs/n/upper"), "--lower", b.P("image")).Stdout)
	other, ended := b.start("--lower", b.P("image"), "n")
	r := b.run(b.onImage("n", "--", "true")...)
	require.Equal(t, 125, r.Code)
	require.Contains(t, r.Stderr, "running already")
	require.NoError(t, other.Process.Signal(syscall.SIGTERM))
	require.Equal(t, 41, b.end(other, ended))
	require.Equal(t, "1\n", b.inside("cat /kept", b.onImage("--rm", "n")...))
}

// Which of the two backs the root directory.
func TestBackend(t *testing.T) {
	b := newBench(t)
	says := func(want string, args ...string) {
		t.Helper()
		r := b.run(append([]string{"--verbose"}, append(args, "--", "sh", "-c", "rm -r /bin/../bin/id && echo x >/new")...)...)
		require.Zero(t, r.Code, r.Stderr)
		require.Contains(t, r.Stderr, want)
	}
	says("overlay of the kernel", b.onImage()...)
	b.Sh("setfattr -n " + harness.TrustedNS() + "layerfs.format -v 'aufs " + strings.TrimSuffix(harness.TrustedNS(), ".") + "' image")
	says("FUSE union", b.onImage()...)
	if harness.Root() {
		says("overlay of the kernel", "--lower", "/")
	} else {
		says("FUSE union", "--lower", "/")
	}
}

// start starts a script that says when it is up, and traps signals.
func (b *bench) start(args ...string) (*exec.Cmd, chan error) {
	b.T.Helper()
	b.Sh("mkdir -p sign")
	args = append([]string{"run", "--root", b.P("store"), "-v", b.P("sign") + ":/test"}, args...)
	cmd := exec.Command(harness.Bin(), append(args, "--",
		"sh", "-c", "trap 'exit 41' TERM; trap 'exit 42' INT; echo up >/test/up; while :; do sleep 0.05; done")...)
	cmd.Stderr = os.Stderr
	require.NoError(b.T, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	up := harness.Eventually(harness.Moment, func() bool { _, err := os.Stat(b.P("sign/up")); return err == nil })
	require.True(b.T, up)
	require.NoError(b.T, os.Remove(b.P("sign/up")))
	return cmd, ended
}

func (b *bench) end(cmd *exec.Cmd, ended chan error) int {
	b.T.Helper()
	select {
	case <-ended:
		return cmd.ProcessState.ExitCode()
	case <-time.After(harness.Moment):
		_ = cmd.Process.Kill()
		b.T.Fatal("it does not end")
		return 0
	}
}

// Signals to the caller reach the command. Whoever of the processes is killed,
// the others end, and nothing is left after the next run.
func TestSignals(t *testing.T) {
	b := newBench(t)
	for _, lower := range []string{b.P("image"), "/"} {
		for sig, code := range map[syscall.Signal]int{syscall.SIGTERM: 41, syscall.SIGINT: 42} {
			cmd, ended := b.start("--lower", lower)
			require.NoError(t, cmd.Process.Signal(sig))
			require.Equal(t, code, b.end(cmd, ended), sig)
			require.Empty(t, b.left())
		}
		cmd, ended := b.start("--lower", lower)
		require.NoError(t, cmd.Process.Kill())
		b.end(cmd, ended)
		require.True(t, harness.Eventually(harness.Moment, func() bool { return len(b.left()) == 0 }), "the holder has tidied up")

		cmd, ended = b.start("--lower", lower)
		holders := childrenOf(t, cmd.Process.Pid)
		require.Len(t, holders, 1)
		require.NoError(t, unix.Kill(holders[0], unix.SIGKILL))
		require.Equal(t, 128+9, b.end(cmd, ended))
		require.True(t, harness.Eventually(harness.Moment, func() bool { return len(b.daemons()) == 0 }), "init and the union have ended")
		require.Len(t, b.left(), 1)
		b.inside("true", "--lower", lower)
		require.Empty(t, b.left())
	}
}

// A run does not hold the mounts of others: their daemons end when they are unmounted.
func TestMountsOfOthers(t *testing.T) {
	b := newBench(t)
	lowers := []string{b.P("image")}
	if harness.Root() {
		lowers = append(lowers, "/") // in a user namespace what is mounted below the lower stays
	}
	for _, lower := range lowers {
		m := b.Mount(b.RW())
		cmd, ended := b.start("--lower", lower)
		m.Unmount() // looks for its daemon
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.Equal(t, 41, b.end(cmd, ended))
	}
}

// daemons are the processes that have the store among their arguments or are
// the union on it.
func (b *bench) daemons() []string {
	out := b.Cmd(nil, "sh", "-c", "grep -alF -e '"+b.P("store")+"' -e run-init /proc/[0-9]*/cmdline 2>/dev/null").Stdout
	var pids []string
	for _, l := range strings.Fields(out) {
		if data, _ := os.ReadFile(l); strings.HasPrefix(string(data), harness.Bin()) {
			pids = append(pids, l)
		}
	}
	return pids
}

func childrenOf(t *testing.T, pid int) (children []int) {
	t.Helper()
	stats, err := os.ReadDir("/proc")
	require.NoError(t, err)
	for _, p := range stats {
		data, err := os.ReadFile("/proc/" + p.Name() + "/stat")
		if err != nil {
			continue
		}
		f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		if len(f) > 1 && f[1] == itoa(pid) {
			children = append(children, atoi(p.Name()))
		}
	}
	return children
}
