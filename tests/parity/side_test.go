package parity

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// slots is how many files are held open over changes.
const slots = 6

// side is one of the two trees.
type side struct {
	root  string
	plain bool       // an ordinary directory
	fds   [slots]int // -1: closed
	renew func()     // unmounts and mounts again
	end   func()
	alter func() string // changes the branches, and says how; nil for a side where none can
}

func newSide(root string, renew, end func()) *side {
	s := &side{root: root, renew: renew, end: end}
	for i := range s.fds {
		s.fds[i] = -1
	}
	return s
}

func (s *side) close(slot int) {
	if s.fds[slot] >= 0 {
		unix.Close(s.fds[slot])
		s.fds[slot] = -1
	}
}

func (s *side) closeAll() {
	for i := range s.fds {
		s.close(i)
	}
}

// at returns the path of p, which may be "" for the root. A root that is no
// mount must not be renamed either.
func (s *side) at(p string) string {
	if p == "" {
		p = "."
	}
	return s.root + "/" + p
}

// dirs makes the upper, work and mount directory of a mount.
func dirs(e *harness.Env, name string) (upper, work, point string) {
	d := [3]string{e.P(name + "-u"), e.P(name + "-w"), e.P(name + "-m")}
	for _, p := range d {
		require.NoError(e.T, os.Mkdir(p, 0755))
	}
	// Where many users make things.
	require.NoError(e.T, unix.Chmod(d[0], 0777))
	return d[0], d[1], d[2]
}

// layerfsSide mounts layerfs in the dialect that it chooses by itself.
func layerfsSide(e *harness.Env, name string, lowers []string) (s *side, upper string) {
	return dialectSide(e, name, lowers, "auto")
}

// dialectSide mounts layerfs.
func dialectSide(e *harness.Env, name string, lowers []string, dialect string) (s *side, upper string) {
	upper, work, point := dirs(e, name)
	opts := "suid,dev,whiteout=" + dialect + ",lowerdir=" + strings.Join(lowers, ":") + ",upperdir=" + upper + ",workdir=" + work
	m := e.MountOn(point, opts)
	return newSide(point, func() { m = m.Remount(opts) }, func() { m.Unmount() }), upper
}

// severalSide mounts layerfs with some of the lowers writable, and any policy.
// While the history goes on branches get another mode, and empty ones come and go.
func severalSide(g *source) mounter {
	return func(e *harness.Env, name string, lowers []string) (*side, string) {
		upper, _, point := dirs(e, name)
		opts := "suid,dev,br=" + upper + "=rw"
		modes := map[string]string{}
		for _, l := range lowers {
			modes[l] = pick(g, "rw", "rw", "ro+wh")
			opts += ":" + l + "=" + modes[l]
		}
		opts += ",create=" + pick(g, "tdp", "rr", "mfs:0", "mfsrr:1", "pmfs", "pmfsrr:1000000000000", "tdmfs:1")
		opts += ",cpup=" + pick(g, "tdp", "bup", "bu")
		e.T.Log(opts)
		m := e.MountOn(point, opts)
		s := newSide(point, nil, func() { m.Unmount() })
		empty := ""
		change := func(what string) bool {
			r := e.Layerfs("remount", "-o", what, point)
			require.Contains(e.T, []int{0, 4}, r.Code, "%s: %s", what, r.Stderr) // 4: in use
			return r.Code == 0
		}
		s.alter = func() string {
			l := pick(g, lowers...)
			to := map[string]string{"rw": "ro+wh", "ro+wh": "rw"}[modes[l]]
			switch what := "mod:" + l + "=" + to; {
			case g.IntN(2) == 0 && change(what):
				modes[l] = to
				return what
			case empty != "":
				what = "del:" + empty
				if change(what) {
					empty = ""
				}
				return what
			}
			empty = e.P(fmt.Sprint("empty", g.IntN(1000000)))
			require.NoError(e.T, os.Mkdir(empty, 0777))
			what := fmt.Sprintf("add:%d:%s=ro", 1+g.IntN(len(lowers)+1), empty) // on top it would be the root that is seen
			require.True(e.T, change(what))
			return what
		}
		s.renew = func() {
			m = m.Remount(opts)
			empty = ""
			for _, l := range lowers {
				require.True(e.T, change("mod:"+l+"="+modes[l]))
			}
		}
		return s, upper
	}
}

// overlaySide mounts the kernel's overlay.
func overlaySide(e *harness.Env, name string, lowers []string) (s *side, upper string) {
	upper, work, point := dirs(e, name)
	opts := fmt.Sprintf("redirect_dir=on,index=on,xino=on,lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(lowers, ":"), upper, work)
	mounted := false
	mount := func() {
		require.NoError(e.T, unix.Mount("overlay", point, "overlay", 0, opts), opts)
		mounted = true
	}
	end := func() {
		if mounted {
			require.NoError(e.T, unmounting(point), "unmounting the oracle")
			mounted = false
		}
	}
	e.T.Cleanup(func() {
		if mounted {
			_ = unix.Unmount(point, unix.MNT_DETACH)
		}
	})
	mount()
	return newSide(point, func() { end(); mount() }, end), upper
}

// plainSide is a copy of what is at root.
func plainSide(e *harness.Env, root string) *side {
	e.Sh("cp -a " + root + " plain")
	s := newSide(e.P("plain"), func() {}, func() {})
	s.plain = true
	return s
}

// unmounting is retried: something else on the machine may look at mounts.
func unmounting(point string) (err error) {
	for range 50 {
		if err = unix.Unmount(point, 0); err != unix.EBUSY {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}
