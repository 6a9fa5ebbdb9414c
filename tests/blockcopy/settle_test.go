package blockcopy

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// A live mount is settled while its file is written, by handles that stay.
func TestSettleUnderWriters(t *testing.T) {
	r := newRig(t, 48*mib)
	f, err := os.OpenFile(r.m.P("big"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	rnd := rand.New(rand.NewPCG(5, 6))
	require.NoError(t, change(f, &r.model, rnd))
	var stop atomic.Bool
	done := make(chan error)
	go func() {
		for !stop.Load() {
			if err := change(f, &r.model, rnd); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	time.Sleep(50 * time.Millisecond)
	res := r.Layerfs("settle", r.m.Point)
	stop.Store(true)
	require.NoError(t, <-done)
	require.Zero(t, res.Code, "%s%s", res.Stdout, res.Stderr)
	r.same("big")
	require.NoError(t, change(f, &r.model, rnd))
	r.same("big")
	r.isPlain("big")
	r.eventuallyDevices(0)
	require.NoError(t, f.Close())
	r.remount()
	r.same("big")
}

// Times, owners, links and attributes are those that the stub had.
func TestSettleKeeps(t *testing.T) {
	r := newRig(t, mib)
	require.NoError(t, os.Link(r.P("l", "big"), r.P("l", "same")))
	r.remount()
	r.write("big", []byte("z"), 77)
	require.NoError(t, os.Link(r.m.P("big"), r.m.P("third")))
	require.NoError(t, unix.Lsetxattr(r.m.P("big"), "user.colour", []byte("red"), 0))
	old := time.Date(2001, 1, 2, 3, 4, 5, 6, time.UTC)
	require.NoError(t, os.Chtimes(r.m.P("big"), old, old))
	before := stat(t, r.m.P("big"))
	for round := range 2 {
		if round == 1 {
			r.m.Unmount()
			require.NoDirExists(t, r.P("u", ".wh..wh.layerfs"), "nothing is left of the pool")
			res := r.Layerfs("settle", "--workdir", r.P("w"), r.P("u")) // nothing is left to do
			require.Zero(t, res.Code, "%s%s", res.Stdout, res.Stderr)
			r.m = r.Mount(r.opts)
		} else {
			res := r.Layerfs("settle", r.m.Point)
			require.Zero(t, res.Code, "%s%s", res.Stdout, res.Stderr)
		}
		after := stat(t, r.m.P("big"))
		require.Equal(t, before.Ino, after.Ino)
		require.Equal(t, before.Mtim, after.Mtim)
		require.Equal(t, before.Nlink, after.Nlink)
		require.Equal(t, before.Size, after.Size)
		for _, name := range []string{"big", "same", "third"} {
			r.same(name)
		}
		require.Equal(t, "red", harness.GetXattr(t, r.m.P("third"), "user.colour"))
		r.isPlain("third")
	}
}

func stat(t testing.TB, path string) (st syscall.Stat_t) {
	t.Helper()
	require.NoError(t, syscall.Stat(path, &st))
	return st
}

// A settle that is killed leaves the stub, with its text, or the plain file.
func TestSettleKilled(t *testing.T) {
	r := newRig(t, 64*mib)
	r.write("big", noise(9, 3*mib), 5*mib)
	old := time.Date(2001, 1, 2, 3, 4, 5, 6, time.UTC)
	require.NoError(t, os.Chtimes(r.m.P("big"), old, old))
	stubs := 0
	for i := range 8 {
		r.m.Unmount()
		r.launcherGone()
		cmd := exec.Command(harness.Bin(), "settle", "--workdir", r.P("w"), r.P("u"))
		require.NoError(t, cmd.Start())
		time.Sleep(time.Duration(20+i*25) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		r.launcherGone()
		r.m = r.Mount(r.opts)
		r.same("big")
		st := stat(t, r.m.P("big"))
		require.True(t, old.Equal(time.Unix(st.Mtim.Unix())))
		if stubAttr(t, r.P("u", "big")) != "" {
			stubs++
			r.isStub("big")
		}
	}
	require.NotZero(t, stubs, "none was killed in time")
	res := r.Layerfs("settle", r.m.Point)
	require.Zero(t, res.Code, "%s%s", res.Stdout, res.Stderr)
	r.same("big")
	r.isPlain("big")
}

// settle=umount leaves plain files only.
func TestSettleAtUmount(t *testing.T) {
	r := newRig(t, mib, "settle=umount")
	r.write("big", []byte("x"), 5)
	r.m.Unmount()
	r.isPlain("big")
	require.NoDirExists(t, r.P("u", ".wh..wh.layerfs"), "nothing is left of the pool")
}

// What a comparison tells is the same for stubs and for full copies.
func TestDiff(t *testing.T) {
	r := newRig(t, 3*mib)
	build := func() {
		r.write("big", []byte("some bytes"), 100000)
		require.NoError(t, os.Truncate(r.m.P("big"), 5*mib))
		require.NoError(t, os.Rename(r.m.P("big"), r.m.P("huge")))
		fixed := time.Date(2011, 1, 2, 3, 4, 5, 0, time.UTC)
		require.NoError(t, os.Chtimes(r.m.P("huge"), fixed, fixed))
		require.NoError(t, os.Chtimes(r.m.Point, fixed, fixed))
	}
	tar := func(args ...string) string {
		t.Helper()
		out := r.P("layer.tar")
		res := r.Layerfs(append([]string{"diff", "-o", out}, args...)...)
		require.Zero(t, res.Code, res.Stderr)
		return r.Sh("sha256sum < layer.tar; rm layer.tar")
	}
	build()
	live := tar(r.m.Point)
	changes := r.Layerfs("changes", r.m.Point).Stdout
	r.m.Unmount()
	r.isStub("huge")
	require.Equal(t, live, tar("--upper", r.P("u"), "--lower", r.P("l")))
	require.Equal(t, "A /huge\nD /big\n", sorted(changes))

	r.Sh("rm -rf u w; mkdir u w")
	r.opts = r.RW("copyup=full")
	r.m = r.Mount(r.opts)
	build()
	require.Equal(t, live, tar(r.m.Point))
	require.Equal(t, changes, r.Layerfs("changes", r.m.Point).Stdout)
}

func sorted(lines string) string {
	cmd := exec.Command("sort")
	cmd.Stdin = reader(lines)
	out, _ := cmd.Output()
	return string(out)
}

// trace says where the blocks are.
func TestTrace(t *testing.T) {
	r := newRig(t, mib)
	r.write("big", make([]byte, block), 2*block)
	res := r.Layerfs("trace", r.m.Point, "big")
	require.Zero(t, res.Code, res.Stderr)
	require.Contains(t, res.Stdout, "copied up by blocks")
	require.Contains(t, res.Stdout, fmt.Sprintf("%d of %d bytes in the pool; over %s", block, mib, r.P("l", "big")))
	require.Contains(t, res.Stdout, "pool, data block")
}

// A shared pool serves several uppers.
func TestSharedPool(t *testing.T) {
	r := newRig(t, mib)
	r.m.Unmount()
	pool := r.P("pool")
	res := r.Layerfs("pool", "create", pool, "--data-size", "256M")
	require.Zero(t, res.Code, res.Stderr)
	r.opts = r.RW(forced, "pool="+pool)
	r.m = r.Mount(r.opts)
	r.write("big", []byte("shared"), 1000)
	r.remount()
	r.same("big")
	require.NoDirExists(t, filepath.Join(r.P("u", ".wh..wh.layerfs"), "pool"))
	for _, d := range []string{"u2", "w2", "m2"} {
		require.NoError(t, os.Mkdir(r.P(d), 0755))
	}
	other := *r
	other.model = append([]byte(nil), noise(1, mib)...)
	other.m = r.MountOn(r.P("m2"), "lowerdir="+r.P("l")+",upperdir="+r.P("u2")+",workdir="+r.P("w2"), forced, "pool="+pool)
	other.write("big", []byte("of another"), 1000)
	other.same("big")
	r.same("big")
	diff := r.Layerfs("diff", "-o", r.P("x.tar"), r.m.Point)
	require.Zero(t, diff.Code, diff.Stderr)
	res = r.Layerfs("settle", r.m.Point)
	require.Zero(t, res.Code, res.Stderr)
	r.same("big")
	other.same("big")
	other.m.Unmount()
	r.m.Unmount()
	require.True(t, harness.Eventually(5*time.Second, func() bool { return len(harness.Daemons(pool)) == 0 }))
}

// Renamed directories of an upper that is not mounted become plain ones: the
// upper shows the same over nothing that it showed over the lower there.
func TestSettleDirectories(t *testing.T) {
	for _, dialect := range []string{"aufs", "overlay"} {
		t.Run(dialect, func(t *testing.T) {
			if dialect == "overlay" {
				harness.RequireRoot(t)
			}
			r := newRig(t, mib, "whiteout="+dialect)
			r.Sh(`mkdir -p l/d/sub/deep l/d/gone; echo 1 > l/d/sub/deep/f; echo 1 > l/d/sub/deep/g; echo 2 > l/d/x; echo 3 > l/d/gone/y
				ln l/d/x l/d/hard; ln -s x l/d/link; head -c 400000 /dev/urandom > l/d/large; touch -d 2003-01-01 l/d l/d/x l/d/sub`)
			r.remount()
			r.Sh(`mv m/d m/e; rm -r m/e/gone; mv m/e/sub m/e/moved; echo more >> m/e/hard; mkdir m/e/sub; echo new > m/e/sub/n; chmod 700 m/e/large`)
			before := r.listing("m/e")
			r.m.Unmount()
			r.launcherGone()
			args := []string{"settle", "--workdir", r.P("w"), "--lower", r.P("l"), r.P("u")}
			for i := range 4 { // killed at some moments
				cmd := exec.Command(harness.Bin(), args...)
				require.NoError(t, cmd.Start())
				time.Sleep(time.Duration(10+i*20) * time.Millisecond)
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				r.launcherGone()
				r.m = r.Mount(r.opts)
				require.Equal(t, before, r.listing("m/e"), "after kill %d", i)
				r.m.Unmount()
				r.launcherGone()
			}
			res := r.Layerfs(args...)
			require.Zero(t, res.Code, "%s%s", res.Stdout, res.Stderr)
			r.m = r.Mount(r.opts)
			require.Equal(t, before, r.listing("m/e"))
			r.m.Unmount()
			require.NoError(t, os.RemoveAll(r.P("l", "d")))
			r.m = r.Mount(r.opts)
			require.Equal(t, before, r.listing("m/e"))
			r.m.Unmount()
			check := r.Layerfs("check", "--workdir", r.P("w"), "--lower", r.P("l"), r.P("u"))
			require.NotContains(t, check.Stdout, "redirect")
			require.NotContains(t, check.Stdout, "opaque")
		})
	}
}

// listing is all that can be said of a tree, but the inode numbers.
func (r *rig) listing(dir string) string {
	r.t.Helper()
	return r.Sh("cd " + dir + "; find . | sort | while read f; do stat -c '%n %F %a %u %g %Y' $f; done; find . -type f | sort | xargs sha256sum; find . -type f -links +1 | wc -l")
}

// Renamed directories of a live mount become plain ones below those who use them.
func TestSettleDirectoriesLive(t *testing.T) {
	for _, dialect := range []string{"aufs", "overlay"} {
		t.Run(dialect, func(t *testing.T) {
			if dialect == "overlay" {
				harness.RequireRoot(t)
			}
			r := newRig(t, mib, "whiteout="+dialect)
			r.Sh(`mkdir -p l/d/sub/deep l/d/gone l/far/away; echo 1 > l/d/sub/deep/f; echo 1 > l/d/sub/deep/g; echo 2 > l/d/x; echo 3 > l/d/gone/y; echo 4 > l/far/away/z
				ln l/d/x l/d/hard; ln -s x l/d/link; head -c 400000 /dev/urandom > l/d/large; echo open > l/d/open; echo new > l/d/later`)
			r.remount()
			r.Sh(`mv m/d m/e; rm -r m/e/gone; mv m/e/sub m/e/moved; rm m/e/moved/deep/f; mv m/far/away m/e/away; echo more >> m/e/hard; mkdir m/e/sub; echo new > m/e/sub/n`)
			kept, err := os.Open(r.m.P("e", "open")) // of the lower, and removed
			require.NoError(t, err)
			require.NoError(t, os.Remove(r.m.P("e", "open")))
			dir, err := os.Open(r.m.P("e"))
			require.NoError(t, err)
			part, err := dir.Readdirnames(2)
			require.NoError(t, err)
			file, err := os.OpenFile(r.m.P("e", "large"), os.O_RDWR, 0)
			require.NoError(t, err)
			inode := r.Sh("stat -c %i m/e m/e/x")
			before := r.listing("m/e")

			res := r.Layerfs("settle", r.m.Point)
			require.Zero(t, res.Code, "%s%s", res.Stdout, res.Stderr)
			require.Contains(t, res.Stdout, "3 renamed directories settled")
			require.NotContains(t, res.Stdout, "keep")
			require.Equal(t, before, r.listing("m/e"))
			require.Equal(t, inode, r.Sh("stat -c %i m/e m/e/x"))
			got := make([]byte, 4)
			_, err = kept.ReadAt(got, 0)
			require.NoError(t, err)
			require.Equal(t, "open", string(got))
			rest, err := dir.Readdirnames(0)
			require.NoError(t, err)
			require.ElementsMatch(t, strings.Fields(r.Sh("ls m/e")), append(part, rest...))
			_, err = file.WriteAt([]byte("after"), 100)
			require.NoError(t, err)
			for _, f := range []*os.File{kept, dir, file} {
				require.NoError(t, f.Close())
			}
			// It goes on as a plain directory does.
			r.Sh(`mv m/e m/g; echo x > m/g/open; mv m/g/moved m/g/again; rm m/g/later; mkdir m/g/later; mv m/g/x m/g/y; rm m/g/hard; mkdir m/d`)
			after := r.listing("m/g")
			r.remount()
			require.Equal(t, after, r.listing("m/g"))
			r.m.Unmount()
			r.Sh("rm -r l/d l/far")
			r.m = r.Mount(r.opts)
			require.Equal(t, after, r.listing("m/g"))
			r.m.Unmount()
			res = r.Layerfs("check", "--workdir", r.P("w"), "--lower", r.P("l"), r.P("u"))
			require.NotContains(t, res.Stdout, "redirect")
			require.NotContains(t, res.Stdout, "opaque")
		})
	}
}
