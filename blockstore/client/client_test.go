package client

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/server"
)

// The test binary is its own pool process.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "pool-process" {
		if server.Run(os.Args[2], Report) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newPool(t *testing.T, o blockstore.Options) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pool")
	require.NoError(t, blockstore.Create(dir, o))
	t.Cleanup(func() {
		unlock, err := server.Lock(dir, func() bool { return false })
		require.NoError(t, err, "the pool process must end")
		unlock()
	})
	return dir
}

func open(t *testing.T, dir string) *Client {
	t.Helper()
	c, err := Open(dir, Program("pool-process"))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

const mib = 1 << 20

func TestReadWrite(t *testing.T) {
	c := open(t, newPool(t, blockstore.Options{DataSize: 256 * mib}))
	_, err := c.Create(blockstore.NewDevice{Name: "a", Size: 64 * mib})
	require.NoError(t, err)
	a, err := c.Volume("a", nil)
	require.NoError(t, err)
	data := bytes.Repeat([]byte("layerfs!"), 7*1024) // 56 KiB
	_, err = a.WriteAt(data, 0)
	require.NoError(t, err)
	require.NoError(t, a.Flush())
	st, err := c.Status()
	require.NoError(t, err)
	require.EqualValues(t, 1, st.Used, "56 KiB take one block")

	_, err = c.Create(blockstore.NewDevice{Name: "s", Of: "a"})
	require.NoError(t, err)
	_, err = a.WriteAt([]byte("changed"), 100)
	require.NoError(t, err)
	require.NoError(t, a.Flush())
	got, err := c.ReadAt("s", 0, len(data))
	require.NoError(t, err)
	require.Equal(t, data, got)
	got, err = c.ReadAt("a", 100, 7)
	require.NoError(t, err)
	require.Equal(t, "changed", string(got))
	require.ErrorIs(t, c.Delete("a"), unix.EBUSY)
	require.NoError(t, a.Close())
	require.NoError(t, c.Delete("a"))
	st, err = c.Status()
	require.NoError(t, err)
	require.EqualValues(t, 1, st.Used)
}

// A pool process that is killed again and again costs its clients nothing
// that was answered.
func TestProcessKilled(t *testing.T) {
	dir := newPool(t, blockstore.Options{DataSize: 256 * mib})
	end := time.Now().Add(5 * time.Second)
	var group sync.WaitGroup
	for i := range 2 {
		c := open(t, dir)
		name := fmt.Sprint("dev", i)
		_, err := c.Create(blockstore.NewDevice{Name: name, Size: 16 * mib})
		require.NoError(t, err)
		group.Go(func() { hammer(t, c, name, uint64(i), end) })
	}
	kills := 0
	for time.Now().Before(end) {
		time.Sleep(time.Duration(50+rand.IntN(100)) * time.Millisecond)
		if pid := lockHolder(dir); pid != 0 && syscall.Kill(pid, syscall.SIGKILL) == nil {
			kills++
		}
	}
	group.Wait()
	require.Greater(t, kills, 5)
	t.Logf("%d kills", kills)
}

// lockHolder finds the pool process by its socket.
func lockHolder(dir string) int {
	f, err := os.Open(dir)
	if err != nil {
		return 0
	}
	defer f.Close()
	sock, err := dial(f)
	if err != nil {
		return 0
	}
	defer sock.Close()
	raw, err := sock.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// hammer writes, discards, flushes and takes snapshots, and compares with
// memory all the time.
func hammer(t *testing.T, c *Client, name string, seed uint64, end time.Time) {
	rng := rand.New(rand.NewPCG(seed, 3))
	v, err := c.Volume(name, nil)
	if err != nil {
		t.Error(err)
		return
	}
	defer v.Close()
	want, got := make([]byte, 16*mib), make([]byte, 16*mib)
	buf := make([]byte, 300<<10)
	var snaps []string
	for i := 0; time.Now().Before(end); i++ {
		off := rng.IntN(len(want) - len(buf))
		n := 1 + rng.IntN(len(buf))
		switch k := rng.IntN(100); {
		case k < 60:
			for j := range buf[:n] {
				buf[j] = byte(rng.Uint32())
			}
			copy(want[off:], buf[:n])
			_, err = v.WriteAt(buf[:n], int64(off))
		case k < 70:
			clear(want[off : off+n])
			err = v.Zero(int64(off), int64(n), k < 65)
		case k < 80:
			err = v.Flush()
		case k < 84:
			snap := fmt.Sprintf("%s-%d", name, i)
			_, err = c.Create(blockstore.NewDevice{Name: snap, Of: name})
			if snaps = append(snaps, snap); err == nil && len(snaps) > 3 {
				err = c.Delete(snaps[0])
				snaps = snaps[1:]
			}
		default:
			if _, err = v.ReadAt(got[:n], int64(off)); err == nil && !bytes.Equal(got[:n], want[off:off+n]) {
				err = fmt.Errorf("operation %d: wrong bytes at %d", i, off)
			}
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
	if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("in the end: wrong bytes (%v)", err)
	}
}
