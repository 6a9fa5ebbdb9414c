package aufs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// branch makes the directory of a branch with files of every kind of interest,
// which all say its name.
func branch(e *harness.Env, name string) {
	e.Sh(fmt.Sprintf(`mkdir -p %[1]s/d/e %[1]s/only-%[1]s/deep; for f in f d/f d/e/f only-%[1]s/f only-%[1]s/deep/f; do echo %[1]s >%[1]s/$f; done`, name))
}

// read returns the first word of a file, or what is wrong.
func read(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.(*os.PathError).Err.Error()
	}
	return strings.TrimSpace(string(data))
}

func (x *live) remount(changes ...string) harness.Result {
	x.T.Helper()
	return x.Layerfs("remount", "-o", strings.Join(changes, ","), x.P("m"))
}

// change is remount that must succeed.
func (x *live) change(changes ...string) {
	x.T.Helper()
	r := x.remount(changes...)
	require.Zero(x.T, r.Code, "%v: %s", changes, r.Stderr)
}

// live is a mount whose branches change.
type live struct{ *harness.Env }

// branches lists the branches as index and path=mode.
func (x *live) branches() (out []string) {
	x.T.Helper()
	for _, line := range strings.Split(x.Layerfs("branches", x.P("m")).Stdout, "\n") {
		line, _, _ = strings.Cut(line, "   (")
		out = append(out, line)
	}
	return out
}

func newLive(t *testing.T, br string) *live {
	e := harness.New(t)
	for _, b := range []string{"a", "b", "c"} {
		branch(e, b)
	}
	e.Mount("br=" + br)
	return &live{e}
}

// What the kernel has in its caches, names, absences, listings and pages, is
// what the branches say when the command returns.
func TestChangesAreSeen(t *testing.T) {
	x := newLive(t, "u=rw:b=ro")
	see := func(names string, files map[string]string) {
		t.Helper()
		list, err := os.ReadDir(x.P("m"))
		require.NoError(t, err)
		var got []string
		for _, e := range list {
			got = append(got, e.Name())
		}
		require.Equal(t, names, strings.Join(got, " "))
		for path, want := range files {
			require.Equal(t, want, read(x.P("m", path)), path)
		}
	}
	const none = "no such file or directory"
	see("d f only-b", map[string]string{"f": "b", "d/f": "b", "d/e/f": "b", "only-c/f": none, "only-a/f": none})
	x.change("append:c=ro")
	see("d f only-b only-c", map[string]string{"f": "b", "d/f": "b", "only-c/deep/f": "c", "only-a/f": none})
	x.change("prepend:a=ro")
	see("d f only-a only-b only-c", map[string]string{"f": "a", "d/f": "a", "d/e/f": "a", "only-c/deep/f": "c", "only-a/f": "a"})
	x.change("del:a", "del:c")
	see("d f only-b", map[string]string{"f": "b", "d/f": "b", "d/e/f": "b", "only-c/f": none, "only-a/f": none, "only-b/f": "b"})

	// Whiteouts come and go with their branch, and with its mode.
	x.Sh("mkdir x; >x/.wh.f; mkdir x/d; >x/d/.wh..wh..opq")
	x.change("add:1:x=ro")
	see("d f only-b", map[string]string{"f": "b", "d/f": none}) // the opaque mark counts in every mode
	x.change("mod:x=ro+wh")
	see("d only-b", map[string]string{"f": none, "d/f": none})
	x.change("del:x")
	see("d f only-b", map[string]string{"f": "b", "d/f": "b"})
}

// Left to right: the same branch may come, change and go in one command; an
// error leaves everything as it was.
func TestChangesAreAllOrNone(t *testing.T) {
	x := newLive(t, "u=rw:b=ro")
	before := x.branches()
	x.change("append:c=ro", "mod:c=ro+wh", "del:c")
	for _, bad := range []struct {
		changes string
		code    int
		says    string
	}{
		{"append:c=ro,append:nowhere=ro", 3, "nowhere does not exist"},
		{"append:c=ro,del:a", 3, "a is not a branch of this mount"},
		{"del:b,append:u=ro", 2, "is a branch already"},
		{"append:c=ro,append:u/d=rw", 3, "does not exist"},
		{"append:c=ro,append:c/d=rw,append:c/d/e=rw", 2, "lies inside the writable branch"},
		{"prepend:c=up", 2, `mode "up" is unknown`},
		{"append:f=ro", 2, "is not a directory"},
		{"add:x:c=ro", 2, "add:INDEX:DIR=MODE"},
		{"del:u,del:b", 2, "last branch"},
		{"mod:b", 2, "mod:DIR=MODE"},
		{"lowerdir=c", 2, "no change of a live mount"},
		{",", 2, "names no change"},
		{"append:m/d=ro", 2, "lies inside the mountpoint"},
		{"append:/proc/sys=ro", 2, "procfs or sysfs"},
		{"append:" + strings.Repeat("n", 300), 1, "too long"},
	} {
		x.Sh(">f")
		r := x.remount(bad.changes)
		require.Equal(t, bad.code, r.Code, "%s: %s", bad.changes, r.Stderr)
		require.Contains(t, r.Stderr, bad.says, bad.changes)
		require.Equal(t, before, x.branches(), bad.changes)
	}
}

// A branch in use stays, and the message says who uses it and what.
func TestBusy(t *testing.T) {
	for what, script := range map[string]string{
		"open file":         "exec 3<m/only-c/f; echo; read x || :",
		"open directory":    "exec 3<m/only-c; echo; read x || :",
		"working directory": "cd m/only-c/deep; echo; read x || :",
		"program":           "cp /bin/sleep c/only-c/prog; m/only-c/prog 100 & echo; read x || :; kill $!",
	} {
		t.Run(what, func(t *testing.T) {
			x := newLive(t, "u=rw:b=ro:c=ro")
			cmd := exec.Command("sh", "-c", script)
			cmd.Dir = x.Dir
			in, err := cmd.StdinPipe()
			require.NoError(t, err)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			_, err = out.Read(make([]byte, 1))
			require.NoError(t, err)
			r := x.remount("del:c")
			require.Equal(t, 4, r.Code, r.Stderr)
			require.Contains(t, r.Stderr, "branch "+x.P("c")+" is in use: ")
			if what != "program" {
				require.Contains(t, r.Stderr, strconv.Itoa(cmd.Process.Pid)+" (sh) has /only-c")
			}
			require.Equal(t, "c", read(x.P("m/only-c/f")))
			// A directory that other branches have too, or a file of theirs, is no obstacle.
			f, err := os.Open(x.P("m/f"))
			require.NoError(t, err)
			defer f.Close()
			in.Close()
			require.NoError(t, cmd.Wait())
			x.change("del:c")
			buf := make([]byte, 1)
			_, err = f.ReadAt(buf, 0)
			require.NoError(t, err)
			require.Equal(t, "b", string(buf))
		})
	}
}

// rw to ro is refused while somebody writes; ro to rw makes changes possible in place.
func TestModes(t *testing.T) {
	x := newLive(t, "u=rw:b=ro")
	f, err := os.OpenFile(x.P("m/new"), os.O_CREATE|os.O_WRONLY, 0644)
	require.NoError(t, err)
	r := x.remount("mod:u=ro")
	require.Equal(t, 4, r.Code, r.Stderr)
	require.Contains(t, r.Stderr, "has /new")
	_, err = f.WriteString("written\n")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	x.change("mod:u=ro")
	require.ErrorIs(t, os.WriteFile(x.P("m/new"), nil, 0644), unix.EROFS)
	require.ErrorIs(t, os.Remove(x.P("m/f")), unix.EROFS)
	require.Equal(t, "written", read(x.P("m/new")))
	x.change("mod:b=rw")
	require.NoError(t, os.WriteFile(x.P("m/only-b/f"), []byte("changed\n"), 0644))
	require.Equal(t, "changed", read(x.P("b/only-b/f")))
	require.ErrorIs(t, os.WriteFile(x.P("m/new"), nil, 0644), unix.EROFS, "in a branch above the writable one")
	x.change("mod:u=rw", "mod:b=ro")
	require.NoError(t, os.WriteFile(x.P("m/only-b/f"), []byte("again\n"), 0644))
	require.Equal(t, "changed", read(x.P("b/only-b/f")))
	require.Equal(t, "again", read(x.P("u/only-b/f")))
}

// "the process still refers the file on the lower(hidden) branch after adding
// the branch" (aufs(5), add): what is written to it is not lost.
func TestHiddenWhileOpen(t *testing.T) {
	x := newLive(t, "u=rw:b=ro")
	var open []*os.File
	for _, name := range []string{"f", "d/f", "only-b/f"} {
		f, err := os.OpenFile(x.P("m", name), os.O_RDWR|os.O_APPEND, 0)
		require.NoError(t, err)
		defer f.Close()
		open = append(open, f)
	}
	_, err := open[1].WriteString("copied up before\n")
	require.NoError(t, err)
	x.change("prepend:a=ro")
	require.Equal(t, "a", read(x.P("m/f")))
	for i, want := range []string{"b\nmore", "b\ncopied up before\nmore", "b\nmore"} {
		_, err := open[i].WriteString("more\n")
		require.NoError(t, err)
		data := make([]byte, 100)
		n, _ := open[i].ReadAt(data, 0)
		require.Equal(t, want+"\n", string(data[:n]))
	}
	require.Equal(t, "b\nmore", read(x.P("u/f")))
	require.Equal(t, "b\ncopied up before\nmore", read(x.P("u/d/f")))
	require.Equal(t, "b\nmore", read(x.P("m/only-b/f")))
	require.Equal(t, "a", read(x.P("m/d/f")))
	x.change("del:a")
	require.Equal(t, "b\nmore", read(x.P("m/f")))
	require.Equal(t, "b\ncopied up before\nmore", read(x.P("m/d/f")))
}

// The control channel is not in the merged tree: whoever sees nothing but that
// cannot change the branches, though he be root and the host's socket lie in a lower.
func TestInsideNobodyChangesBranches(t *testing.T) {
	if !harness.Root() {
		t.Skip("needs chroot")
	}
	e := harness.New(t)
	e.Sh("mkdir -p l/run/layerfs l/tmp more")
	e.Sh("cp " + harness.Bin() + " l/layerfs")
	e.Mount("lowerdir=" + e.P("l") + ":/,upperdir=" + e.P("u") + ",workdir=" + e.P("w"))
	sockets := e.Sh("ls /run/layerfs")
	require.NotEmpty(t, sockets)
	for _, s := range strings.Fields(sockets) { // as they are seen through the mount
		r := e.Cmd(nil, "python3", "-c", "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])", e.P("m/run/layerfs", s))
		require.NotZero(t, r.Code)
		require.Contains(t, r.Stderr, "refused")
	}
	r := e.Cmd(nil, "chroot", e.P("m"), "/layerfs", "remount", "-o", "append:/tmp=ro", "/")
	require.NotZero(t, r.Code, r.Stdout)
	require.NotContains(t, e.Layerfs("branches", e.P("m")).Stdout, "/tmp=ro")
}

// "At least 500 branches": mounted, listed, looked up, changed.
func TestManyBranches(t *testing.T) {
	e := harness.New(t)
	e.Sh("for i in $(seq 500); do mkdir -p n/$i/d; echo $i >n/$i/f$i; echo $i >n/$i/d/same; done; mkdir one")
	br := "br=u=rw"
	for i := range 500 {
		br += fmt.Sprintf(":n/%d=ro", i+1)
	}
	e.Mount(br)
	list, err := os.ReadDir(e.P("m"))
	require.NoError(t, err)
	require.Len(t, list, 501)
	require.Equal(t, "500", read(e.P("m/f500")))
	require.Equal(t, "1", read(e.P("m/d/same")))
	x := &live{e}
	x.change("del:n/1", "add:250:one=ro")
	require.Equal(t, "2", read(e.P("m/d/same")))
	require.NoError(t, os.WriteFile(e.P("m/f500"), []byte("up"), 0644))
	require.Equal(t, "up", read(e.P("u/f500")))
}

// mount(8) reaches the same by its own syntax.
func TestHelperRemounts(t *testing.T) {
	if !harness.Root() {
		t.Skip("an ordinary user's mount(8) cannot remount")
	}
	x := newLive(t, "u=rw:b=ro")
	require.NoError(t, os.Symlink(harness.Bin(), x.P("mount.layerfs")))
	r := x.Cmd(nil, x.P("mount.layerfs"), "layerfs", x.P("m"), "-o", "rw,remount,append:"+x.P("c")+"=ro")
	require.Zero(t, r.Code, r.Stderr)
	require.Equal(t, "c", read(x.P("m/only-c/f")))
}

// Changes under work, a thousand in the soak: no error, no stale name, no
// descriptor lost.
func TestChangesUnderWork(t *testing.T) {
	changes := 60
	if testing.Short() {
		changes = 20
	}
	changes = harness.Setting("LAYERFS_TEST_CHANGES", changes)
	e := harness.New(t)
	e.Sh(`mkdir a b c src; for b in a b c; do for i in 0 1 2 3 4 5 6 7 8 9; do mkdir -p $b/t/$b/$i; echo $b >$b/t/$b/$i/f; echo $b >$b/t/same$i; done; done
		mkdir u/src; echo 'int f(void);' >u/src/y.h
		echo '#include "y.h"
int main(void) { return f(); }' >u/src/x.c; echo '#include "y.h"
int f(void) { return 0; }' >u/src/y.c`)
	m := e.Mount("br=u=rw:a=ro")
	fds := len(descriptors(t, m.Pid))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	fail := make(chan string, 16)
	work := func(name string, step func(n int) error) {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := step(n); err != nil {
					select {
					case fail <- fmt.Sprintf("%s, step %d: %v", name, n, err):
					default:
					}
					return
				}
			}
		})
	}
	work("writer", writer(e.P("m/data")))
	work("walker", func(int) error { return walk(e.P("m")) })
	work("builder", builder(e))
	rnd := rand.New(rand.NewPCG(1, 2))
	in := map[string]bool{"a": true}
	busy := 0
	for i := 0; i < changes && len(fail) == 0; {
		b := []string{"a", "b", "c"}[rnd.IntN(3)]
		change := fmt.Sprintf("add:%d:%s=%s", 1+rnd.IntN(2), b, []string{"ro", "ro+wh", "rr"}[rnd.IntN(3)])
		switch {
		case in[b] && rnd.IntN(4) == 0:
			change = "mod:" + b + "=ro+wh"
		case in[b]:
			change = "del:" + b
		}
		r := e.Layerfs("remount", "-o", change, e.P("m"))
		if r.Code == 4 {
			busy++
			require.Less(t, busy, 10*changes)
			continue
		}
		require.Zero(t, r.Code, "%s: %s", change, r.Stderr)
		i++
		if strings.HasPrefix(change, "add") || strings.HasPrefix(change, "del") {
			in[b] = !in[b]
		}
		for name, there := range in {
			_, err := os.Stat(e.P("m/t", name, "3/f"))
			require.Equal(t, there, err == nil, "after %s: %s: %v", change, name, err)
		}
	}
	close(stop)
	wg.Wait()
	select {
	case f := <-fail:
		t.Fatal(f)
	default:
	}
	t.Logf("%d changes, %d times busy", changes, busy)
	for b := range in {
		if in[b] {
			r := e.Layerfs("remount", "-o", "del:"+b, e.P("m"))
			require.Zero(t, r.Code, r.Stderr)
		}
	}
	for _, d := range descriptors(t, m.Pid) {
		for _, b := range []string{"a", "b", "c"} {
			require.NotEqual(t, e.P(b), d)
			require.False(t, strings.HasPrefix(d, e.P(b)+"/"), "%s is still open", d)
		}
	}
	require.LessOrEqual(t, len(descriptors(t, m.Pid)), fds+64)
}

// descriptors lists what the daemon has open.
func descriptors(t *testing.T, pid int) (out []string) {
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	require.NoError(t, err)
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil {
			out = append(out, to)
		}
	}
	return out
}

// writer returns steps of a random exerciser of a few files, which knows what they must hold.
func writer(dir string) func(int) error {
	rnd := rand.New(rand.NewPCG(3, 4))
	content := map[string][]byte{}
	return func(n int) error {
		if n == 0 {
			if err := os.Mkdir(dir, 0755); err != nil {
				return err
			}
		}
		path := fmt.Sprintf("%s/%d", dir, rnd.IntN(5))
		want, there := content[path]
		got, err := os.ReadFile(path)
		if there != (err == nil) || string(got) != string(want) {
			return fmt.Errorf("%s holds %d bytes, not %d: %v", path, len(got), len(want), err)
		}
		switch rnd.IntN(4) {
		case 0:
			delete(content, path)
			if there {
				return os.Remove(path)
			}
		case 1:
			to := fmt.Sprintf("%s/%d", dir, rnd.IntN(5))
			if there && to != path {
				content[to] = want
				delete(content, path)
				return os.Rename(path, to)
			}
		default:
			data := []byte(strings.Repeat(fmt.Sprint(n, " "), 1+rnd.IntN(3000)))
			f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0644)
			if err != nil {
				return err
			}
			defer f.Close()
			content[path] = append(append([]byte{}, want...), data...)
			_, err = f.Write(data)
			return err
		}
		return nil
	}
}

// walk reads the whole tree. What lies in a branch that comes and goes may be
// there or not, but a file holds what its branch says.
func walk(root string) error {
	return filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		rel := strings.TrimPrefix(p, root)
		if !strings.HasPrefix(rel, "/t") {
			if strings.HasPrefix(rel, "/data") || strings.HasPrefix(rel, "/src") { // others work there
				return filepath.SkipDir
			}
			return err
		}
		if err != nil || d.IsDir() {
			return goneIsFine(err)
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return goneIsFine(err)
		}
		from := strings.Split(rel, "/")[2]
		if got := strings.TrimSpace(string(data)); got != from && !strings.HasPrefix(from, "same") {
			return fmt.Errorf("%s holds %q", rel, got)
		}
		return nil
	})
}

func goneIsFine(err error) error {
	if err == nil || os.IsNotExist(err) {
		return nil
	}
	return err
}

// builder returns steps that compile a program of two files, link and run it.
func builder(e *harness.Env) func(int) error {
	harness.RequireTool(e.T, "gcc", "gcc")
	return func(n int) error {
		script := `cd m/src; gcc -c x.c -o x.o; gcc -c y.c -o y.o; gcc x.o y.o -o prog.tmp; mv prog.tmp prog; ./prog; rm x.o`
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = e.Dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}
