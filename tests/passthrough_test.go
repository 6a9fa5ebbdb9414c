package tests

import (
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// With the daemon stopped, the kernel alone can read and write what it has been given.
func TestPassthrough(t *testing.T) {
	harness.RequireRoot(t)
	e := harness.New(t).Tree("l", "low=lower").Tree("u", "up=upper")
	m := e.Mount(e.RW("passthrough"))
	up, err := os.OpenFile(m.P("up"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer up.Close()
	made, err := os.OpenFile(m.P("made"), os.O_RDWR|os.O_CREATE, 0600)
	require.NoError(t, err)
	defer made.Close()
	for _, f := range []*os.File{up, made} { // the kernel asks once for capabilities
		_, err := f.WriteAt([]byte("daemon"), 0)
		require.NoError(t, err)
	}
	stopped(t, m.Pid, func() error {
		for _, f := range []*os.File{up, made} {
			if _, err := f.WriteAt([]byte("KERNEL"), 0); err != nil {
				return err
			}
			if _, err := f.ReadAt(make([]byte, 6), 0); err != nil {
				return err
			}
		}
		return nil
	})
	require.Equal(t, "KERNEL", read(t, e.P("u/up")))
	require.Equal(t, "KERNEL", read(t, m.P("up")))
	require.Equal(t, "KERNEL", read(t, m.P("made")))
	st := harness.Stat(t, m.P("made"))
	require.EqualValues(t, 6, st.Size)

	// A file whose owner's rights it has is written by us, who clear them.
	require.NoError(t, up.Close())
	require.True(t, harness.Eventually(5*time.Second, func() bool {
		e.Sh("chmod 6777 m/up; setpriv --reuid 4242 --regid 4242 --clear-groups sh -c 'echo x >> m/up'")
		return harness.Stat(t, m.P("up")).Mode&06000 == 0
	}))

	// A lower file is copied up while somebody reads it: he reads the copy.
	low, err := os.Open(m.P("low"))
	require.NoError(t, err)
	defer low.Close()
	require.NoError(t, os.WriteFile(m.P("low"), []byte("changed"), 0))
	buf := make([]byte, 7)
	_, err = low.ReadAt(buf, 0)
	require.NoError(t, err)
	require.Equal(t, "changed", string(buf))
	require.NoError(t, low.Close())
	require.True(t, harness.Eventually(5*time.Second, func() bool { // its RELEASE has no answer to wait for
		f, err := os.OpenFile(m.P("low"), os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		_, err = f.WriteAt([]byte("C"), 0)
		require.NoError(t, err)
		return read(t, e.P("u/low")) == "Changed" && read(t, m.P("low")) == "Changed"
	}))
}

func TestPassthroughOfReadOnlyMount(t *testing.T) {
	harness.RequireRoot(t)
	e := harness.New(t).Tree("l", "low=lower").Tree("l2", "other=2")
	m := e.Mount("lowerdir=" + e.P("l2") + ":" + e.P("l") + ",passthrough")
	f, err := os.Open(m.P("low"))
	require.NoError(t, err)
	defer f.Close()
	stopped(t, m.Pid, func() error {
		_, err := f.ReadAt(make([]byte, 5), 0)
		return err
	})
	r := e.Layerfs("remount", "-o", "append:"+e.P("u")+"=ro", m.Point)
	require.Equal(t, 7, r.Code)
	require.Contains(t, r.Stderr, "passthrough")
}

// stopped runs work, which must not need the daemon, while that is stopped.
func stopped(t *testing.T, pid int, work func() error) {
	t.Helper()
	require.NoError(t, unix.Kill(pid, syscall.SIGSTOP))
	done := make(chan error, 1)
	go func() { done <- work() }()
	var err error
	late := false
	select {
	case err = <-done:
	case <-time.After(10 * time.Second):
		late = true
	}
	require.NoError(t, unix.Kill(pid, syscall.SIGCONT))
	if late {
		<-done
	}
	require.NoError(t, err)
	require.False(t, late, "the daemon was asked")
}
