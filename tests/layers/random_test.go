package layers

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// Seeds that have failed once.
var kept = []uint64{}

// TestRandom plays random histories in mounts and requires of each layer that
// it is what the full comparison says, and that it makes the lower tree into
// the merged one.
func TestRandom(t *testing.T) {
	harness.RequireFUSE(t)
	if seed := harness.Setting("LAYERFS_TEST_SEED", 0); seed != 0 {
		play(t, uint64(seed))
		return
	}
	for _, seed := range kept {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { play(t, seed) })
	}
	first := harness.FirstSeed()
	for i := range uint64(harness.Setting("LAYERFS_TEST_OPS", 20)) {
		t.Run(fmt.Sprint(first+i), func(t *testing.T) { play(t, first+i) })
	}
}

func play(t *testing.T, seed uint64) {
	g := &player{Rand: rand.New(rand.NewPCG(seed, 0)), t: t}
	defer func() {
		if t.Failed() {
			t.Logf("seed %d:\n%s", seed, strings.Join(g.log, "\n"))
		}
	}()
	e := harness.New(t)
	g.root = e.P("l")
	for range 60 {
		g.step()
	}
	opts := e.RW()
	low := e.P("l")
	lowers := []string{"--lower", e.P("l")}
	if g.IntN(2) == 0 { // two lowers, of which the upper one is an upper of before
		g.log = append(g.log, "-- second lower")
		m := e.Mount(opts)
		g.root = m.Point
		for range 30 {
			g.step()
		}
		m.Unmount()
		e.Sh("mv u l2u; mkdir u; rm -rf w/*; mkdir lm")
		lowers = []string{"--lower", e.P("l2u"), "--lower", e.P("l")}
		opts = "lowerdir=" + e.P("l2u") + ":" + e.P("l") + ",upperdir=" + e.P("u") + ",workdir=" + e.P("w")
		low = e.MountOn(e.P("lm"), "lowerdir="+e.P("l2u")+":"+e.P("l")).Point
	}
	opts += ",whiteout=" + []string{"overlay", "aufs", "xattr", "auto"}[g.IntN(4)]
	g.log = append(g.log, "-- upper "+opts)
	m := e.Mount(opts)
	g.root = m.Point
	for range 80 {
		g.step()
		if g.IntN(60) == 0 {
			m = m.Remount(opts)
		}
	}
	layer := diff(e, "layer.tar", m.Point)
	was, merged := read(t, low), read(t, m.Point)
	requireCanonical(t, layer, was, merged)
	e.Sh("cp -a " + low + " full")
	extract(t, layer, e.P("full"))
	require.Equal(t, described(merged), described(read(t, e.P("full"))), "the lower with the layer is the merged tree")

	m.Unmount()
	stored := append([]string{"--upper", e.P("u")}, lowers...)
	sameBytes(t, layer, diff(e, "later.tar", stored...), "the upper alone")
	for _, dialect := range []string{"overlay", "aufs", "xattr"} {
		up := applied(e, "a-"+dialect, layer, dialect)
		sameBytes(t, layer, diff(e, "again.tar", append([]string{"--upper", up}, lowers...)...), "applied as "+dialect)
		sameBytes(t, layer, diff(e, "alone.tar", "--upper", up), "without its lowers")
	}
}

// player makes random changes in a tree.
type player struct {
	*rand.Rand
	t    *testing.T
	root string
	log  []string
}

var letters = []string{"a", "b", "c", "d", "e"}

func (g *player) path() string {
	p := letters[g.IntN(len(letters))]
	for g.IntN(2) == 0 && strings.Count(p, "/") < 2 {
		p += "/" + letters[g.IntN(len(letters))]
	}
	return p
}

// step makes one change; that it may fail is part of the game.
func (g *player) step() {
	p, q := g.path(), g.path()
	a, b := path.Join(g.root, p), path.Join(g.root, q)
	kinds := []struct {
		name string
		do   func() error
	}{
		{"write", func() error { return write(a, q, unix.O_TRUNC|unix.O_CREAT) }},
		{"write", func() error { return write(a, strings.Repeat(q, 5000), unix.O_TRUNC|unix.O_CREAT) }},
		{"append", func() error { return write(a, q, unix.O_APPEND) }},
		{"open for writing", func() error { return write(a, "", 0) }},
		{"mkdir", func() error { return os.Mkdir(a, 0755) }},
		{"mkdir", func() error { return os.MkdirAll(a, 0755) }},
		{"remove", func() error { return os.Remove(a) }},
		{"remove all", func() error { return removeAll(a) }},
		{"empty", func() error { return g.empty(a) }},
		{"rename", func() error { return os.Rename(a, b) }},
		{"rename", func() error { return os.Rename(a, b) }},
		{"rename", func() error { return os.Rename(a, b) }},
		{"exchange", func() error { return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE) }},
		{"link", func() error { return link(a, b) }},
		{"link", func() error { return link(a, b) }},
		{"symlink", func() error { return os.Symlink(q, a) }},
		{"fifo", func() error { return unix.Mknod(a, unix.S_IFIFO|0644, 0) }},
		{"chmod", func() error { return lchmod(a, 0700|uint32(g.IntN(2)*01000+g.IntN(64))) }},
		{"chmod there and back", func() error { return g.thereAndBack(a) }},
		{"time", func() error { return harness.SetTime(a, time.Unix(int64(g.IntN(1e9)), int64(g.IntN(2)*5e8))) }},
		{"xattr", func() error { return unix.Lsetxattr(a, "user.x", []byte(q), 0) }},
		{"truncate", func() error { return os.Truncate(a, int64(g.IntN(20000))) }},
	}
	if harness.Root() {
		kinds = append(kinds, struct {
			name string
			do   func() error
		}{"chown", func() error { return os.Lchown(a, g.IntN(1<<31), g.IntN(3)) }})
	}
	k := kinds[g.IntN(len(kinds))]
	g.log = append(g.log, fmt.Sprintf("%s %s %s: %v", k.name, p, q, k.do()))
}

// write does not wait for a reader of a pipe.
func write(p, text string, flags int) error {
	f, err := os.OpenFile(p, os.O_WRONLY|unix.O_NONBLOCK|flags, 0644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// removeAll removes what is there; os.RemoveAll opens the parent even when
// that is a pipe.
func removeAll(p string) error {
	if _, err := os.Lstat(p); err != nil {
		return err
	}
	return os.RemoveAll(p)
}

// empty removes a directory and makes one in its place.
func (g *player) empty(p string) error {
	if err := unix.Access(p+"/.", unix.X_OK); err != nil {
		return err
	}
	if err := removeAll(p); err != nil {
		return err
	}
	return os.Mkdir(p, 0755)
}

// link leaves out what an ordinary user's layer cannot know of: the names that
// pipes and symbolic links have are recorded in the work directory then.
func link(a, b string) error {
	if fi, err := os.Lstat(a); err != nil || !harness.Root() && !fi.Mode().IsRegular() {
		return err
	}
	return os.Link(a, b)
}

// lchmod is chmod of what is no symbolic link.
func lchmod(p string, mode uint32) error {
	fi, err := os.Lstat(p)
	if err != nil || fi.Mode()&os.ModeSymlink != 0 {
		return err
	}
	return unix.Chmod(p, mode)
}

func (g *player) thereAndBack(p string) error {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return err
	}
	if err := lchmod(p, 0777); err != nil {
		return err
	}
	return lchmod(p, st.Mode&07777)
}
