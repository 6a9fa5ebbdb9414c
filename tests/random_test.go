package tests

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// A plain directory with the merged content is the oracle: whatever is done
// to it and to the mount must have the same errno and give the same tree, at
// once and after a remount.

// seedTree is what the lowers hold: top first.
var seedTree = []string{
	"a/f=1\na/sub/g=2\nb/h=3\nx=4\nlink->a/f\nhard1=same\nhard2=>hard1\nshared/top=t",
	"a/low=5\na/sub/deep/z=6\nc/only=7\ny=8\nx=hidden\nshared/bottom=b\nb/.wh.gone=\nempty/",
	"b/gone=never\nc/third=9\nshared/third=3\nz/y/x/w=10",
}

// seedMerged is the same as one tree.
const seedMerged = "a/f=1\na/sub/g=2\nb/h=3\nx=4\nlink->a/f\nhard1=same\nhard2=>hard1\nshared/top=t\n" +
	"a/low=5\na/sub/deep/z=6\nc/only=7\ny=8\nshared/bottom=b\nempty/\nc/third=9\nshared/third=3\nz/y/x/w=10"

// setting is a mount and its oracle.
type setting struct {
	t     *testing.T
	e     *harness.Env
	m     *harness.Mount
	opts  string
	plain string
	names harness.DumpOptions
}

func newSetting(t *testing.T, more ...string) *setting {
	t.Helper()
	e := harness.New(t)
	var lowers []string
	for i, spec := range seedTree {
		d := fmt.Sprintf("s%d", i)
		e.Tree(d, spec)
		lowers = append(lowers, e.P(d))
	}
	e.Tree("plain", seedMerged)
	opts := strings.Join(append([]string{"lowerdir=" + strings.Join(lowers, ":") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w")}, more...), ",")
	s := &setting{t: t, e: e, m: e.Mount(opts), opts: opts, plain: e.P("plain")}
	s.same("before anything")
	return s
}

func (s *setting) same(msg string) {
	s.t.Helper()
	require.Equal(s.t, harness.Dump(s.t, s.plain, s.names), harness.Dump(s.t, s.m.Point, s.names), msg)
}

func (s *setting) remount() {
	s.t.Helper()
	s.m = s.m.Remount(s.opts)
	// A lower file's count of links is not known without a search for those
	// of its names that were deleted before this mount: TestUnlinkedLowerName.
	s.names.Names = true
	s.same("after a remount")
}

// do carries out one operation on both sides.
func (s *setting) do(what string, op func(root string) error) {
	s.t.Helper()
	want, got := op(s.plain), op(s.m.Point)
	require.Equal(s.t, errno(want).Error(), errno(got).Error(), what)
}

// names is the small space in which random operations meet.
var names = []string{
	"a", "b", "c", "x", "y", "z", "shared", "empty", "link", "hard1", "hard2", "new", "a/f", "a/low", "a/sub", "a/new",
	"a/sub/g", "a/sub/deep", "a/sub/deep/z", "b/h", "b/gone", "b/new", "c/only", "c/third", "shared/top", "shared/bottom",
	"shared/third", "z/y", "z/y/x", "z/y/x/w", "new/a", "new/sub", "empty/in", "a/sub/new",
}

// step picks one operation.
func step(rnd *rand.Rand, i int) (string, func(root string) error) {
	p, q := names[rnd.Intn(len(names))], names[rnd.Intn(len(names))]
	n := rnd.Intn(9000)
	at := func(root, p string) string { return filepath.Join(root, p) }
	switch rnd.Intn(16) {
	case 0, 1:
		return "write " + p, func(r string) error {
			f, err := os.OpenFile(at(r, p), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0644)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte(fmt.Sprintf("step %d", i)), int64(n%50))
			return err
		}
	case 2:
		return "append " + p, func(r string) error {
			f, err := os.OpenFile(at(r, p), os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("+")
			return err
		}
	case 3:
		return fmt.Sprintf("truncate %s %d", p, n), func(r string) error { return unix.Truncate(at(r, p), int64(n)) }
	case 4, 5:
		return "unlink " + p, func(r string) error { return unix.Unlink(at(r, p)) }
	case 6:
		return "mkdir " + p, func(r string) error { return unix.Mkdir(at(r, p), 0755) }
	case 7:
		return "rmdir " + p, func(r string) error { return unix.Rmdir(at(r, p)) }
	case 8, 9, 10:
		return "rename " + p + " " + q, func(r string) error { return unix.Rename(at(r, p), at(r, q)) }
	case 11:
		return "rename noreplace " + p + " " + q, func(r string) error {
			return unix.Renameat2(unix.AT_FDCWD, at(r, p), unix.AT_FDCWD, at(r, q), unix.RENAME_NOREPLACE)
		}
	case 12:
		return "exchange " + p + " " + q, func(r string) error {
			return unix.Renameat2(unix.AT_FDCWD, at(r, p), unix.AT_FDCWD, at(r, q), unix.RENAME_EXCHANGE)
		}
	case 13:
		return "link " + p + " " + q, func(r string) error { return unix.Link(at(r, p), at(r, q)) }
	case 14:
		return "symlink " + p, func(r string) error { return unix.Symlink("a/f", at(r, p)) }
	default:
		return fmt.Sprintf("chmod, setxattr %s", p), func(r string) error {
			var st unix.Stat_t
			if err := unix.Lstat(at(r, p), &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
				return err
			}
			if err := unix.Chmod(at(r, p), uint32(0700|n&0077)); err != nil {
				return err
			}
			return unix.Setxattr(at(r, p), "user.demo", []byte(fmt.Sprint(n)), 0)
		}
	}
}

func TestRandomHistories(t *testing.T) {
	const steps = 150
	for seed := 0; seed < seeds(t, 24, 6); seed++ {
		dialect := []string{"overlay", "aufs", "xattr"}[seed%3]
		t.Run(fmt.Sprintf("%s seed %d", dialect, seed), func(t *testing.T) {
			s := newSetting(t, "whiteout="+dialect)
			rnd := rand.New(rand.NewSource(int64(seed)))
			var history []string
			defer func() {
				if t.Failed() {
					t.Logf("history:\n%s", strings.Join(history, "\n"))
				}
			}()
			for i := 0; i < steps; i++ {
				what, op := step(rnd, i)
				history = append(history, what)
				s.do(fmt.Sprintf("step %d: %s", i, what), op)
				switch {
				case i%50 == 49:
					s.remount()
				case i%10 == 9:
					s.same(fmt.Sprintf("after step %d", i))
				}
			}
			// Everything can be removed, however it came to be.
			for _, root := range []string{s.plain, s.m.Point} {
				entries, err := os.ReadDir(root)
				require.NoError(t, err)
				for _, x := range entries {
					require.NoError(t, os.RemoveAll(filepath.Join(root, x.Name())))
				}
			}
			s.remount()
		})
	}
}

// Named histories, so that a failure says what it is about.
func TestHistories(t *testing.T) {
	ren := func(a, b string) func(string) error {
		return func(r string) error { return unix.Rename(filepath.Join(r, a), filepath.Join(r, b)) }
	}
	rm := func(p string) func(string) error {
		return func(r string) error { return os.RemoveAll(filepath.Join(r, p)) }
	}
	mkdir := func(p string) func(string) error {
		return func(r string) error { return os.Mkdir(filepath.Join(r, p), 0755) }
	}
	rmdir := func(p string) func(string) error {
		return func(r string) error { return unix.Rmdir(filepath.Join(r, p)) }
	}
	put := func(p, c string) func(string) error {
		return func(r string) error { return os.WriteFile(filepath.Join(r, p), []byte(c), 0644) }
	}
	ren2 := func(a, b string, flags uint) func(string) error {
		return func(r string) error {
			return unix.Renameat2(unix.AT_FDCWD, filepath.Join(r, a), unix.AT_FDCWD, filepath.Join(r, b), flags)
		}
	}
	for name, ops := range map[string][]func(string) error{
		"delete and create again":                   {rm("x"), put("x", "again")},
		"delete, create a directory":                {rm("x"), mkdir("x"), put("x/in", "1")},
		"a directory over a deleted one is opaque":  {rm("a"), mkdir("a"), put("a/f", "only")},
		"the same, deep":                            {rm("z/y/x"), mkdir("z/y/x")},
		"a file over a deleted directory":           {rm("a"), put("a", "file"), rm("a"), mkdir("a")},
		"rmdir of a directory with whiteouts":       {rm("b/h"), rmdir("b"), mkdir("b")},
		"rmdir of what is not empty":                {rmdir("b"), rmdir("shared")},
		"rename a lower file":                       {ren("y", "a/y2")},
		"rename a lower directory":                  {ren("z", "zz")},
		"rename a merged directory":                 {ren("shared", "b/s")},
		"rename it twice and back":                  {ren("shared", "s2"), ren("s2", "a/s3"), ren("a/s3", "shared")},
		"rename, make the old name anew":            {ren("shared", "s2"), mkdir("shared"), put("shared/top", "new")},
		"rename inside a renamed directory":         {ren("a", "aa"), ren("aa/sub", "aa/sub2"), ren("aa/sub2/deep", "deep")},
		"rename onto an empty merged directory":     {rm("b/h"), ren("shared", "b")},
		"rename onto what is not empty":             {ren("shared", "a")},
		"rename onto a lower file":                  {ren("x", "y"), ren("y", "a/low")},
		"rename a directory into itself":            {ren("a", "a/sub/a")},
		"rename a file onto a directory":            {ren("x", "a"), ren("a", "x")},
		"noreplace":                                 {ren2("x", "y", unix.RENAME_NOREPLACE), ren2("x", "n", unix.RENAME_NOREPLACE), ren2("shared", "m", unix.RENAME_NOREPLACE)},
		"exchange files":                            {ren2("x", "y", unix.RENAME_EXCHANGE), put("x", "written")},
		"exchange directories":                      {ren2("a", "shared", unix.RENAME_EXCHANGE), rm("shared/low")},
		"exchange a file and a directory":           {ren2("x", "a", unix.RENAME_EXCHANGE), ren2("x", "z/y", unix.RENAME_EXCHANGE)},
		"exchange with nothing":                     {ren2("x", "nothing", unix.RENAME_EXCHANGE)},
		"delete in a renamed directory":             {ren("shared", "s2"), rm("s2/bottom"), put("s2/third", "3b"), ren("s2", "s3")},
		"write through a hard link":                 {put("hard1", "changed")},
		"rename a hard link onto the other":         {ren("hard1", "hard2"), put("hard2", "one inode")},
		"remove one hard link":                      {rm("hard1"), put("hard2", "alone")},
		"move a hard link into a renamed directory": {ren("shared", "s2"), ren("hard1", "s2/h"), put("hard2", "both")},
	} {
		for _, dialect := range []string{"overlay", "aufs", "xattr"} {
			t.Run(name+"/"+dialect, func(t *testing.T) {
				s := newSetting(t, "whiteout="+dialect)
				for i, op := range ops {
					s.do(fmt.Sprintf("operation %d", i+1), op)
				}
				s.same("at once")
				s.remount()
			})
		}
	}
}

func TestRedirectDirOff(t *testing.T) {
	s := newSetting(t, "redirect_dir=off")
	for _, d := range []string{"shared", "z", "a/sub"} {
		wantErrno(t, unix.EXDEV, unix.Rename(s.m.P(d), s.m.P("elsewhere")), d)
	}
	require.NoError(t, os.Mkdir(s.m.P("mine"), 0755))
	require.NoError(t, os.Rename(s.m.P("mine"), s.m.P("mine2")), "a directory of the upper alone needs no redirect")
	require.NoError(t, os.Rename(s.m.P("x"), s.m.P("x2")))
}

// The link count of a lower file does not count a name that was deleted in
// an earlier mount.
func TestUnlinkedLowerName(t *testing.T) {
	s := newSetting(t)
	require.NoError(t, os.Remove(s.m.P("hard1")))
	require.EqualValues(t, 1, harness.Stat(t, s.m.P("hard2")).Nlink, "at once")
	s.m = s.m.Remount(s.opts)
	require.EqualValues(t, 1, harness.Stat(t, s.m.P("hard2")).Nlink, "after a remount")
}

// Many processes at once in the same directories: no error but those that a
// plain directory may give too, and the tree stays consistent.
func TestStressConcurrent(t *testing.T) {
	s := newSetting(t)
	rounds := 400
	if testing.Short() {
		rounds = 100
	}
	allowed := map[syscall.Errno]bool{0: true, unix.ENOENT: true, unix.EEXIST: true, unix.ENOTDIR: true, unix.EISDIR: true,
		unix.ENOTEMPTY: true, unix.EINVAL: true, unix.ELOOP: true, unix.EPERM: true, unix.EBUSY: true}
	var wg sync.WaitGroup
	errs := make(chan string, 64)
	for w := 0; w < 8; w++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rnd := rand.New(rand.NewSource(int64(1000 + w)))
			for i := 0; i < rounds; i++ {
				what, op := step(rnd, i)
				if e := errno(op(s.m.Point)); !allowed[e] {
					select {
					case errs <- fmt.Sprintf("%s: %v", what, e):
					default:
					}
					return
				}
			}
		}()
	}
	wg.Wait()
	close(errs)
	for msg := range errs {
		t.Error(msg)
	}
	live := harness.Dump(t, s.m.Point, harness.DumpOptions{})
	s.m = s.m.Remount(s.opts)
	require.Equal(t, live, harness.Dump(t, s.m.Point, harness.DumpOptions{}), "after a remount")
}

// The daemon's descriptors do not grow with what was done.
func TestStressDescriptors(t *testing.T) {
	e := harness.New(t)
	for i := 0; i < 300; i++ {
		e.Tree("l", fmt.Sprintf("d%d/f=%d\nd%d/g=x", i, i, i))
	}
	m := e.Mount(e.RW())
	pass := func() int {
		for i := 0; i < 300; i++ {
			p := m.P(fmt.Sprintf("d%d", i))
			write(t, p+"/f", "changed")
			write(t, p+"/n", "new")
			require.NoError(t, os.Rename(p+"/n", p+"/n2"))
			require.NoError(t, os.Remove(p+"/n2"))
			_, err := os.ReadDir(p)
			require.NoError(t, err)
		}
		return len(harness.OpenFiles(m.Pid))
	}
	first := pass()
	for i := 0; i < 4; i++ {
		pass()
	}
	require.LessOrEqual(t, len(harness.OpenFiles(m.Pid)), first+16, "descriptors grow")
	require.Less(t, first, 600, "a descriptor per inode")
}
