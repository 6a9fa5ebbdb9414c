package security

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

const secret = "what-lies-outside"

// TestEscapeSymlinkRace: somebody who can write in a branch swaps a directory
// for a symbolic link that leads out of it, while others work in that directory
// through the mount (CVE-2018-15664, CVE-2021-30465). They follow no link
// themselves, so whatever they get or change outside was the daemon's doing.
// LAYERFS_TEST_SECONDS is how long; 60 for the long form.
func TestEscapeSymlinkRace(t *testing.T) {
	seconds := harness.Setting("LAYERFS_TEST_SECONDS", 3)
	for _, c := range []struct{ branch, opts string }{{"u", "timeout=0"}, {"l", "timeout=0"}, {"u", "timeout=1"}} {
		t.Run(c.branch+" "+c.opts, func(t *testing.T) {
			t.Parallel()
			race(t, c.branch, c.opts, time.Duration(seconds)*time.Second)
		})
	}
}

func race(t *testing.T, branch, opts string, length time.Duration) {
	e := harness.New(t).Tree("outside", "f="+secret+"\nsub/f="+secret+"\nempty/")
	e.Tree("l", "d/f=inside\nd/sub/f=inside\nd/low=inside").Tree("u", "d/f=inside\nd/sub/f=inside")
	for i := range 300 { // more than the daemon keeps open
		e.Tree("l", fmt.Sprintf("many/%d/", i))
	}
	require.NoError(t, os.Symlink(e.P("outside"), e.P(branch, "swap")))
	before := harness.Dump(t, e.P("outside"), harness.DumpOptions{Times: true})
	m := e.Mount(e.RW(opts))

	var stop atomic.Bool
	var group sync.WaitGroup
	loop := func(fn func(i int)) {
		group.Go(func() {
			for i := 0; !stop.Load(); i++ {
				fn(i)
			}
		})
	}
	swaps := 0
	loop(func(int) {
		if unix.Renameat2(unix.AT_FDCWD, e.P(branch, "d"), unix.AT_FDCWD, e.P(branch, "swap"), unix.RENAME_EXCHANGE) == nil {
			swaps++
		}
	})
	loop(func(i int) { // makes the daemon open directories again
		_, _ = os.ReadDir(m.P("many", fmt.Sprint(i%300)))
	})
	for w := range 2 {
		loop(func(i int) { work(t, m.Point, i*2+w) })
	}
	time.Sleep(length)
	stop.Store(true)
	group.Wait()
	t.Logf("%d swaps", swaps)
	require.Greater(t, swaps, int(length.Seconds())*100, "the attacker was not at work")
	require.Equal(t, before, harness.Dump(t, e.P("outside"), harness.DumpOptions{Times: true}))
	harness.Dump(t, e.P("u"), harness.DumpOptions{Skip: func(rel string) bool {
		if data, err := os.ReadFile(e.P("u", rel)); err == nil && string(data) == secret && rel != "d/f" && rel != "d/sub/f" {
			t.Errorf("the secret was copied to %s", rel)
		}
		return rel == "d" || rel == "swap"
	}})
}

// work does something in the directory d below root without following links.
func work(t *testing.T, root string, i int) {
	top, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	defer unix.Close(top)
	d, err := unix.Openat(top, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer unix.Close(d)
	switch i % 8 {
	case 0, 1, 2:
		fd, err := unix.Openat(d, []string{"f", "low"}[i%2], unix.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		buf := make([]byte, 100)
		if n, err := unix.Pread(fd, buf, 0); err == nil && string(buf[:n]) == secret {
			t.Error("the secret was read through the mount")
		}
		_, _ = unix.Pwrite(fd, []byte("inside"), 0)
	case 3:
		name := fmt.Sprintf("new%d", i%32)
		_ = unix.Mkdirat(d, name, 0700)
		_ = unix.Unlinkat(d, name, unix.AT_REMOVEDIR)
	case 4:
		_ = unix.Fchmodat(d, "f", uint32(0600+i%8), 0)
		_ = unix.Fchmodat(d, "empty", uint32(0700+i%8), 0)
	case 5:
		_ = unix.Renameat(d, "f", d, "g")
		_ = unix.Renameat(d, "g", d, "f")
	case 6:
		_ = unix.Unlinkat(d, "low", 0)
		_ = unix.Unlinkat(d, "empty", unix.AT_REMOVEDIR)
		_ = unix.Symlinkat("x", d, "low")
	default:
		_ = unix.Fsetxattr(d, "user.attack", []byte("y"), 0)
		buf := make([]byte, 4096)
		_, _ = unix.Getdents(d, buf)
	}
}
