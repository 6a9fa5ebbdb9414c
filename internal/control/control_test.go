package control

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

const testDev = 1<<40 | 0x1234 // no real mount has it

func listen(t *testing.T, h Handler) *Listener {
	t.Helper()
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	l, err := Listen(testDev, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// exchange sends raw bytes to the listener and returns the answer.
func converse(t *testing.T, data string) response {
	t.Helper()
	conn, err := dialDev(testDev)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go conn.Write([]byte(data))
	var r response
	if err := json.NewDecoder(conn).Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestExchange(t *testing.T) {
	l := listen(t, func(cmd string, args json.RawMessage, _ []*os.File) (any, error) {
		switch cmd {
		case "echo":
			return args, nil
		case "panic":
			panic("on purpose")
		}
		return nil, errs.New(errs.Busy, "no %s today", cmd)
	})
	req, err := encode("echo", map[string]int{"a": 1})
	if err != nil {
		t.Fatal(err)
	}
	if r := converse(t, string(req)); string(r.Reply) != `{"a":1}` || r.err() != nil {
		t.Errorf("got %+v", r)
	}
	r := converse(t, `{"cmd":"dinner"}`)
	if err := r.err(); errs.Of(err) != errs.Busy || err.Error() != "no dinner today" {
		t.Errorf("the class was lost: %v", err)
	}
	if r := converse(t, `{"cmd":"panic"}`); r.err() == nil {
		t.Error("a panic was answered with success")
	}
	if r := converse(t, `{"cmd":"echo","args":"`+strings.Repeat("x", maxRequest)); errs.Of(r.err()) != errs.Usage {
		t.Errorf("too large: %v", r.err())
	}
	if fi, err := os.Stat(l.Path()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v", fi, err)
	}
	l.Close()
	if _, err := os.Stat(l.Path()); !os.IsNotExist(err) {
		t.Error("Close left the socket")
	}
}

func TestStale(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	dir := directories()[0]
	if err := usable(dir); err != nil {
		t.Fatal(err)
	}
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, socketName(testDev)), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	if _, err := dialDev(testDev); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a dead daemon's socket: %v", err)
	}
	l, err := Listen(testDev, func(string, json.RawMessage, []*os.File) (any, error) { return 1, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if r := converse(t, `{"cmd":"x"}`); string(r.Reply) != "1" {
		t.Errorf("got %+v", r)
	}
}

func TestUnsafeDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(t.TempDir(), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if usable(filepath.Join(dir, "link")) == nil {
		t.Error("a symbolic link was accepted")
	}
	if err := os.Mkdir(filepath.Join(dir, "open"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "open"), 0o777); err != nil {
		t.Fatal(err)
	}
	if usable(filepath.Join(dir, "open")) == nil {
		t.Error("a directory that everybody can write was accepted")
	}
}

func TestNotAMount(t *testing.T) {
	err := Call(t.TempDir(), "status", nil, nil)
	if errs.Of(err) != errs.NotFound {
		t.Errorf("got %v", err)
	}
	if err := Call(filepath.Join(t.TempDir(), "none"), "status", nil, nil); errs.Of(err) != errs.NotFound {
		t.Errorf("got %v", err)
	}
}

// A daemon that ends late leaves the socket that has taken the place of its own.
func TestLateClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	answer := func(string, json.RawMessage, []*os.File) (any, error) { return nil, nil }
	first, err := ListenAt(path, answer)
	require.NoError(t, err)
	second, err := ListenAt(path, answer)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	require.FileExists(t, path)
	require.NoError(t, second.Close())
	require.NoFileExists(t, path)
}
