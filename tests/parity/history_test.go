package parity

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// user makes every fourth operation.
const user = 1

// compareEvery is how many operations lie between two comparisons of the trees.
// To find the operation that parts them, set it to 1.
var compareEvery = harness.Setting("LAYERFS_TEST_COMPARE", usualCompare)

const usualCompare = 250

const (
	remountEvery = 1500 // operations
	alterEvery   = 60
)

// history is one random history.
type history struct {
	t    *testing.T
	g    *source
	n    int
	log  []string
	self *side // layerfs, or the side that a layer is made on
	ref  *side // the oracle, nil while a layer is made
	lost bool  // overlay has lost track, see excusedLine
}

// perform makes one operation on one side.
func perform(o op, s *side) (string, error) {
	unix.Umask(o.mask)
	if o.user && harness.Root() {
		_ = unix.Setfsgid(user)
		_ = unix.Setfsuid(user)
		defer func() {
			_ = unix.Setfsuid(0)
			_ = unix.Setfsgid(0)
		}()
	}
	return o.do(s)
}

func answer(text string, err error) string {
	if err == nil {
		return "ok " + text
	}
	var e unix.Errno
	if errors.As(err, &e) {
		return unix.ErrnoName(e)
	}
	return err.Error()
}

func (h *history) step() {
	o := h.g.next()
	h.n++
	got := answer(perform(o, h.self))
	who := ""
	if o.user {
		who = " by the user"
	}
	h.log = append(h.log, fmt.Sprintf("%d %s%s umask %o: %s", h.n, o.text, who, o.mask, got))
	if h.ref == nil {
		return
	}
	want := answer(perform(o, h.ref))
	if h.ref.plain {
		got, want = uncounted(got), uncounted(want)
	}
	if got == want {
		return
	}
	if h.lost = h.lost || want == "ESTALE" && !h.ref.plain; h.lost {
		return
	}
	if !h.excused(o.text, got, want) {
		h.fail("layerfs: %s\noracle:  %s", got, want)
	}
	h.self.closeAll() // what is open may differ from now on
	h.ref.closeAll()
}

func (h *history) fail(format string, args ...any) {
	h.t.Helper()
	tail := h.log
	if os.Getenv("LAYERFS_TEST_SEED") == "" {
		tail = tail[max(0, len(tail)-40):]
	}
	h.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(tail, "\n"))
}

// run makes n operations.
func (h *history) run(n int) {
	h.t.Helper()
	for i := 0; i < n && !h.lost; i++ {
		if i%compareEvery == 0 || i%usualCompare == 0 {
			paths := h.compare("")
			if i%usualCompare == 0 {
				h.g.known = paths
			}
		}
		h.step()
		if h.self.alter != nil && i%alterEvery == alterEvery-1 {
			h.log = append(h.log, h.self.alter())
		}
		if h.ref != nil && i%remountEvery == remountEvery-1 {
			for _, s := range []*side{h.self, h.ref} {
				s.closeAll()
				s.renew()
			}
			h.log = append(h.log, "remount")
			h.compare(" after a remount")
		}
	}
	if !h.lost {
		h.compare("")
	}
	h.self.closeAll()
	if h.ref != nil {
		h.ref.closeAll()
	}
}

// compare requires that the trees are the same, and returns what there is.
func (h *history) compare(when string) (paths []string) {
	h.t.Helper()
	got, paths := dump(h.t, h.self.root)
	if h.ref == nil {
		return paths
	}
	want, _ := dump(h.t, h.ref.root)
	for i := range max(len(got), len(want)) {
		g, w := nth(got, i), nth(want, i)
		if h.ref.plain {
			g, w = uncounted(g), uncounted(w)
		}
		if g != w && !(i < len(paths) && h.excusedLine(paths[i], g, w)) {
			h.fail("the trees differ%s\nlayerfs: %s\noracle:  %s", when, g, w)
		}
	}
	return paths
}

func nth(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "nothing"
}

// dump lists a tree in order, a line for each path, and the paths.
func dump(t *testing.T, root string) (lines, paths []string) {
	t.Helper()
	type id struct{ dev, ino uint64 }
	first := map[id]string{}
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.Name(), ".wh.") { // layerfs's own, in a lower of the kernel's
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, root), "/")
		line := rel + " " + statText(&st)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + sum(data)
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		if st.Nlink > 1 && !d.IsDir() {
			k := id{st.Dev, st.Ino}
			if first[k] == "" {
				first[k] = rel
			} else {
				line += " = " + first[k]
			}
		}
		for _, name := range harness.ListXattr(t, p) {
			if !strings.HasPrefix(name, "trusted.layerfs") && !strings.Contains(name, ".overlay.") {
				line += fmt.Sprintf(" %s=%x", name, harness.GetXattr(t, p, name))
			}
		}
		lines, paths = append(lines, line), append(paths, rel)
		return nil
	})
	require.NoError(t, err)
	return lines, paths
}

// layers makes the lowers of a history, top first: each is the upper of a
// history on those below it. kernel says that the kernel's overlay may be among those that make them.
func layers(t *testing.T, e *harness.Env, g *source, kernel bool) []string {
	base := e.P("base")
	require.NoError(t, os.Mkdir(base, 0777))
	require.NoError(t, unix.Chmod(base, 0777))
	h := history{t: t, g: g, self: newSide(base, nil, nil)}
	g.plain = true
	h.run(300)
	g.plain = false
	lowers := []string{base}
	for i := range g.IntN(4) {
		mount, name := layerfsSide, fmt.Sprint("layer", i)
		if kernel && g.IntN(2) == 0 {
			mount = overlaySide
		}
		s, upper := mount(e, name, lowers)
		h := history{t: t, g: g, self: s}
		h.run(200)
		s.end()
		if kernel && harness.MountOptions() != "" { // the kernel reads no stubs
			r := e.Layerfs("settle", "--workdir", e.P(name+"-w"), upper)
			require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
		}
		lowers = append([]string{upper}, lowers...)
	}
	return lowers
}

// mounter mounts something over lowers.
type mounter func(e *harness.Env, name string, lowers []string) (s *side, upper string)

// play plays the history of a seed for n operations. The oracle is nil for a
// plain directory; mount, if not nil, mounts layerfs.
func play(t *testing.T, seed uint64, n int, oracle mounter, mount func(g *source) mounter) {
	t.Logf("seed %d", seed)
	runtime.LockOSThread() // setfsuid is the thread's
	defer runtime.UnlockOSThread()
	defer unix.Umask(unix.Umask(0))
	e := harness.New(t)
	g := &source{Rand: rand.New(rand.NewPCG(seed, 0))}
	lowers := layers(t, e, g, oracle != nil)
	dialect := "auto" // overlay, where the kernel has made lowers
	if oracle == nil {
		dialect = pick(g, "auto", "aufs", "xattr")
	}
	mounted := func(e *harness.Env, name string, lowers []string) (*side, string) {
		return dialectSide(e, name, lowers, dialect)
	}
	if mount != nil {
		mounted = mount(g)
	}
	self, _ := mounted(e, "self", lowers)
	var ref *side
	if oracle != nil {
		ref, _ = oracle(e, "ref", lowers)
	} else {
		ref = plainSide(e, self.root)
		g.plain = true
	}
	h := history{t: t, g: g, self: self, ref: ref}
	defer self.closeAll()
	defer ref.closeAll()
	h.run(n)
	ref.end()
}
