package data

import (
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

const (
	workerEnv = "LAYERFS_TEST_STRESS" // its job: seed, operations, whether it is the last generation, directory
	workers   = 8
	// generations is how often an upper becomes a lower before all begins anew.
	generations = 3
)

// Everything happens in one of two trees, and no operation joins them. In
// "plain" no file of a lower has several links, so the branches alone say
// what it is, and links are made in the last generation only. In "linked" some
// have: which of their names are still one file is kept in the work
// directory, so only the mounts are compared.
var trees = []string{"plain", "linked"}

// path picks a name that may exist, up to three levels deep.
func path(rnd *rand.Rand, tree string) string {
	p := tree
	for depth := rnd.Intn(3); depth > 0; depth-- {
		p += fmt.Sprintf("/d%d", rnd.Intn(4))
	}
	if rnd.Intn(3) == 0 {
		return p + fmt.Sprintf("/d%d", rnd.Intn(4))
	}
	return p + fmt.Sprintf("/f%d", rnd.Intn(8))
}

// stressWorker is what one process does. It reports an error that no sound
// file system gives.
func stressWorker(job string) int {
	var seed int64
	var n int
	var root string
	var last bool
	if _, err := fmt.Sscan(job, &seed, &n, &last, &root); err != nil {
		fmt.Fprintln(os.Stderr, job, err)
		return 2
	}
	w := worker{rnd: rand.New(rand.NewSource(seed)), root: root, last: last}
	for i := 0; i < n; i++ {
		what, err := w.step()
		var e syscall.Errno
		if errors.As(err, &e); err != nil && !allowed[e] {
			fmt.Fprintf(os.Stderr, "worker seed %d, operation %d: %s: %v\n", seed, i, what, err)
			return 1
		}
	}
	return 0
}

// allowed are the errors that a race with the other workers explains.
var allowed = map[syscall.Errno]bool{unix.ENOENT: true, unix.EEXIST: true, unix.ENOTDIR: true, unix.EISDIR: true,
	unix.ENOTEMPTY: true, unix.EINVAL: true, unix.ELOOP: true, unix.EPERM: true, unix.ENODATA: true}

type worker struct {
	rnd  *rand.Rand
	root string
	last bool       // this is the last generation
	held []*os.File // stay open for a while, whatever becomes of their names
}

// existing picks a name that exists, however deep.
func (w *worker) existing(tree string) string {
	p := tree
	for {
		entries, err := os.ReadDir(filepath.Join(w.root, p))
		if err != nil || len(entries) == 0 {
			return p // a file, or gone meanwhile
		}
		p = filepath.Join(p, entries[w.rnd.Intn(len(entries))].Name())
		if w.rnd.Intn(3) == 0 {
			return p
		}
	}
}

func (w *worker) step() (string, error) {
	rnd := w.rnd
	tree := trees[rnd.Intn(len(trees))]
	rp, rq := path(rnd, tree), path(rnd, tree)
	op := rnd.Intn(20)
	if op > 3 && rnd.Intn(2) == 0 {
		rp = w.existing(tree)
	}
	p, q := filepath.Join(w.root, rp), filepath.Join(w.root, rq)
	switch op {
	case 0, 1, 2:
		return "create " + rp, w.write(p, unix.O_CREAT, int64(rnd.Intn(3)*rnd.Intn(5000)))
	case 3:
		return "create new " + rp, w.write(p, unix.O_CREAT|unix.O_EXCL, 0)
	case 4:
		return "write " + rp, w.write(p, 0, int64(rnd.Intn(9000)))
	case 5:
		return "append " + rp, w.write(p, unix.O_APPEND, 0)
	case 6:
		return "truncate " + rp, unix.Truncate(p, int64(rnd.Intn(9000)))
	case 7, 8, 9:
		return "rename " + rp + " " + rq, unix.Rename(p, q)
	case 10:
		flags := []uint{unix.RENAME_EXCHANGE, unix.RENAME_NOREPLACE}[rnd.Intn(2)]
		return fmt.Sprintf("rename %d %s %s", flags, rp, rq), unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, q, flags)
	case 11:
		if tree == "plain" && !w.last {
			return "", nil
		}
		return "link " + rp + " " + rq, unix.Link(p, q)
	case 12:
		return "symlink " + rq, unix.Symlink(filepath.Base(rp), q)
	case 13, 14:
		return "unlink " + rp, unix.Unlink(p)
	case 15, 16:
		return "mkdir " + rq, unix.Mkdir(q, 0755)
	case 17:
		return "rmdir " + rp, unix.Rmdir(p)
	case 18:
		return "chmod " + rp, w.chmod(p, uint32(0600|rnd.Intn(0100)))
	default:
		return "attributes of " + rp, w.xattr(p)
	}
}

// write writes to a file, reads it, and holds it open, or writes to one that
// has been held.
func (w *worker) write(p string, flags int, off int64) error {
	f, err := os.OpenFile(p, os.O_RDWR|flags, 0644)
	if err != nil {
		return err
	}
	w.held = append(w.held, f)
	if len(w.held) > 3 {
		old := w.held[0]
		w.held = w.held[1:]
		defer old.Close()
		if w.rnd.Intn(2) == 0 {
			f = old
		}
	}
	data := []byte(strings.Repeat(fmt.Sprintf("%08x ", w.rnd.Uint32()), 1+w.rnd.Intn(300)))
	if flags&unix.O_APPEND == 0 {
		_, err = unix.Pwrite(int(f.Fd()), data, off)
	} else {
		_, err = unix.Write(int(f.Fd()), data)
	}
	if err == nil {
		_, err = unix.Pread(int(f.Fd()), data, off)
	}
	return err
}

// chmod changes a mode, but of a directory never to one with which an
// ordinary user could not enter it.
func (w *worker) chmod(p string, mode uint32) error {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		mode |= 0100
	}
	return unix.Fchmod(fd, mode)
}

func (w *worker) xattr(p string) error {
	name := fmt.Sprintf("user.t%d", w.rnd.Intn(3))
	if w.rnd.Intn(3) == 0 {
		return unix.Removexattr(p, name)
	}
	return unix.Setxattr(p, name, []byte(fmt.Sprint(w.rnd.Int31())), 0)
}

// plant makes a lower: some of all names, whiteouts and an opaque directory.
func plant(t *testing.T, e *harness.Env, dir string, rnd *rand.Rand, dialect string) {
	t.Helper()
	const d = "plain/d0/d1"
	overlay := " @" + harness.TrustedNS() + "overlay."
	spec := d + "/\n" + d + overlay + "opaque=y\nplain/d1/\nlinked/"
	if dialect == "aufs" {
		spec = d + "/.wh..wh..opq=\nplain/d1/.wh.f0=\nlinked/"
	}
	e.Tree(dir, spec)
	for i := 0; i < 150; i++ {
		p := e.P(dir, path(rnd, trees[rnd.Intn(2)]))
		if strings.HasPrefix(filepath.Base(p), "d") || os.MkdirAll(filepath.Dir(p), 0755) != nil {
			continue
		}
		require.NoError(t, os.WriteFile(p, []byte(strings.Repeat(fmt.Sprint(dir, i), rnd.Intn(2000))), 0644))
		if q := e.P(dir, path(rnd, "linked")); strings.HasPrefix(p, e.P(dir, "linked")) {
			_ = os.Link(p, q) // where its directory is
		}
	}
	switch dialect {
	case "overlay":
		e.Sh("rm -f " + e.P(dir, "plain/d1/f0"))
		e.Tree(dir, "plain/d1/f0%0:0")
	case "xattr":
		e.Sh("rm -f " + e.P(dir, "plain/d1/f0"))
		e.Tree(dir, "plain/d1/f0="+overlay+"whiteout=y\nplain/d1"+overlay+"opaque=x")
	}
}

var stressSeeds = []story{{0, "overlay"}, {1, "aufs"}, {2, "xattr"}}

func TestStressTree(t *testing.T) {
	table := seeds(t, stressSeeds)
	total := ops(t, 12000) / len(table)
	for _, s := range table {
		dialect := []string{"overlay", "aufs", "xattr"}[s.seed%3]
		t.Run(fmt.Sprintf("%s/seed %d", dialect, s.seed), func(t *testing.T) {
			perMount := min(20000, total/generations)
			for done := 0; done < total; done += perMount * generations {
				generate(t, dialect, int64(s.seed+3*done), perMount)
			}
		})
	}
}

// generate begins with two lowers and goes on with what came of them.
func generate(t *testing.T, dialect string, seed int64, perMount int) {
	t.Helper()
	e := harness.New(t)
	rnd := rand.New(rand.NewSource(seed))
	plant(t, e, "l", rnd, dialect)
	plant(t, e, "l2", rnd, dialect)
	lowers := union{e.P("l"), e.P("l2")}
	for g := 0; g < generations; g++ {
		upper, work := e.P(fmt.Sprint("u", g)), e.P(fmt.Sprint("w", g))
		require.NoError(t, os.Mkdir(upper, 0755))
		require.NoError(t, os.Mkdir(work, 0755))
		opts := "lowerdir=" + strings.Join(lowers, ":") + ",upperdir=" + upper + ",workdir=" + work + ",whiteout=" + dialect
		m := e.Mount(opts)
		stress(t, m.Point, rnd, perMount, g == generations-1)
		live := mounted(t, m.Point)
		shown := map[string][]string{}
		for _, tree := range trees {
			shown[tree] = describe(t, live, tree)
		}
		m.Unmount()
		if harness.MountOptions() != "" { // who reads the upper next knows no stubs
			r := e.Layerfs("settle", "--workdir", work, upper)
			require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
		}

		lowers = append(union{upper}, lowers...)
		at := fmt.Sprintf("seed %d, generation %d", seed, g)
		same(t, describe(t, lowers.merged(t), "plain"), shown["plain"], at+": branches (-), what the mount has shown (+)")
		if dialect != "aufs" && harness.Root() {
			same(t, kernelView(t, e, lowers), shown["plain"], at+": kernel overlay (-), what the mount has shown (+)")
		}
		m = e.Mount(opts)
		again := mounted(t, m.Point)
		for _, tree := range trees {
			same(t, describe(t, again, tree), shown[tree], at+": a new mount (-), what the mount has shown (+)")
		}
		m.Unmount()
	}
}

// same fails the test with the lines that only one side has.
func same(t *testing.T, want, got []string, what string) {
	t.Helper()
	sides := map[string]int{}
	for _, l := range want {
		sides[l]--
	}
	for _, l := range got {
		sides[l]++
	}
	var diff []string
	for l, side := range sides {
		if side != 0 {
			diff = append(diff, l+map[int]string{-1: " (-)", 1: " (+)"}[side])
		}
	}
	sort.Strings(diff)
	require.Empty(t, strings.Join(diff, "\n"), what)
}

// stress runs the workers.
func stress(t *testing.T, root string, rnd *rand.Rand, n int, last bool) {
	t.Helper()
	var cmds []*exec.Cmd
	var outs []*strings.Builder
	for i := 0; i < workers; i++ {
		cmd, out := exec.Command("/proc/self/exe"), &strings.Builder{}
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %t %s", workerEnv, rnd.Int63(), n/workers, last, root))
		cmd.Stderr = out
		require.NoError(t, cmd.Start())
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	var failed []string
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			failed = append(failed, fmt.Sprintf("%v: %s", err, outs[i]))
		}
	}
	require.Empty(t, failed, "workers")
}

// kernelView has kernel overlayfs merge the branches. All are its lowers:
// only there does it read whiteouts of the xattr form.
func kernelView(t *testing.T, e *harness.Env, lowers union) []string {
	t.Helper()
	point := e.P("k")
	require.NoError(t, os.MkdirAll(point, 0755))
	require.NoError(t, unix.Mount("overlay", point, "overlay", unix.MS_RDONLY,
		"redirect_dir=follow,lowerdir="+strings.Join(lowers, ":")))
	defer func() { require.NoError(t, unix.Unmount(point, 0)) }()
	return describe(t, mounted(t, point), "plain")
}
