package wire

import (
	"bytes"
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/internal/errs"
)

func TestErrorsKeepClassAndErrno(t *testing.T) {
	for _, err := range []error{
		errs.New(errs.NoSpace, "full: %w", unix.ENOSPC), errs.New(errs.Busy, "busy"), errors.New("plain"), unix.ENODATA,
	} {
		got := DecodeError(EncodeError(err))
		if got.Error() != err.Error() || errs.Of(got) != errs.Of(err) {
			t.Errorf("%v (class %d) came as %v (class %d)", err, errs.Of(err), got, errs.Of(got))
		}
		var errno unix.Errno
		if errors.As(err, &errno) && !errors.Is(got, errno) {
			t.Errorf("%v lost its errno", err)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{}, uint8(Leaf))
	f.Add(LeafBody(&blockstore.LeafMap{Freed: 3, Next: 4}), uint8(Leaf))
	f.Add(AssignBody(1, []blockstore.Assignment{{Virtual: 2, Data: 3}}), uint8(Assign))
	f.Add(GrantBody([]blockstore.Grant{{Block: 5, Zero: true}}), uint8(Reserve))
	f.Fuzz(func(t *testing.T, body []byte, kind uint8) {
		if id, list, err := ParseAssign(body); err == nil && len(body)%16 == 8 && !bytes.Equal(AssignBody(id, list)[8:], body[8:]) {
			t.Error("assignments changed on the way")
		}
		if m, err := ParseLeaf(body); err == nil && !bytes.Equal(LeafBody(m), body[:8*(2+blockstore.LeafBlocks)]) {
			t.Error("a leaf changed on the way")
		}
		_, _ = ParseGrants(body)
		_ = DecodeError(body)
	})
}

func TestFrames(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		c, err := fileConn(fd)
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c
		defer c.Close()
	}
	a, b := NewConn(ends[0]), NewConn(ends[1])
	want := Frame{Kind: Admin, ID: 77, Body: []byte("body")}
	if err := a.Send(want); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Receive(); err != nil || got.Kind != want.Kind || got.ID != want.ID || string(got.Body) != "body" {
		t.Errorf("got %+v, %v", got, err)
	}
	// A length that nobody would send.
	if _, err := ends[0].Write(append([]byte{0xff, 0xff, 0xff, 0xff}, make([]byte, 12)...)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Receive(); err == nil {
		t.Error("a frame of 4 GiB was accepted")
	}
}

func fileConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}
