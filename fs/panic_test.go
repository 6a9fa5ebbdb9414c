package fs

import (
	"bytes"
	"encoding/binary"
	"log"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
)

type panicking struct{ fuse.RawFileSystem }

func (panicking) StatFs(<-chan struct{}, *fuse.InHeader, *fuse.StatfsOut) fuse.Status {
	panic("a bug")
}

// A panic in a handler is EIO to its caller and a line in the log, and the
// next request is served.
func TestPanicIsEIO(t *testing.T) {
	var lines bytes.Buffer
	f := &FS{opts: Options{Log: log.New(&lines, "", 0)}}
	server := fuse.NewProtocolServer(panicking{fuse.NewDefaultRawFileSystem()}, f.FuseOptions())
	const opStatfs = 17
	for range 2 {
		in := make([]byte, 40)
		binary.NativeEndian.PutUint32(in, 40)
		binary.NativeEndian.PutUint32(in[4:], opStatfs)
		out := make([]byte, 256)
		n, code := server.HandleRequest([][]byte{in}, [][]byte{out})
		require.True(t, code.Ok())
		require.GreaterOrEqual(t, n, 16)
		require.Equal(t, -int32(syscall.EIO), int32(binary.NativeEndian.Uint32(out[4:])))
	}
	require.Contains(t, lines.String(), "a bug")
}
