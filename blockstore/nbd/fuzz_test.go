package nbd

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// FuzzServer feeds a client's side of a connection. The first byte says how
// much of it comes before by the book, so that the commands are reached:
// nothing, a handshake with simple replies, or one with all extensions.
func FuzzServer(f *testing.F) {
	preludes := [][]byte{
		nil,
		bytes.Join([][]byte{{0, 0, 0, 3}, optionBytes(optGo, goData(""))}, nil),
		bytes.Join([][]byte{{0, 0, 0, 3}, optionBytes(optStructuredReply, nil),
			optionBytes(optSetMetaContext, metaQuery("disk", contextName)), optionBytes(optGo, goData("disk", 1, 2, 3))}, nil),
	}
	f.Add(append([]byte{0}, preludes[2]...))
	f.Add(append([]byte{0, 0, 0, 0, 1}, optionBytes(optListMetaContext, metaQuery("disk"))...))
	f.Add(append([]byte{0, 0, 0, 0, 0}, optionBytes(optExportName, []byte("disk"))...))
	for cmd := range uint16(9) {
		r := request{cmd: cmd, off: 60000, length: 10}
		f.Add(append([]byte{1}, append(requestBytes(r), "0123456789"...)...))
		r.flags, r.length = allowed[min(int(cmd), len(allowed)-1)]|cmdFlagFUA, 70000
		f.Add(append([]byte{2}, append(requestBytes(r), make([]byte, 70000)...)...))
	}
	f.Add(append([]byte{2}, requestBytes(request{cmd: cmdRead, off: 1<<64 - 1, length: 1<<32 - 1})...))
	f.Add(append([]byte{1}, requestBytes(request{cmd: cmdWrite, off: 1 << 20, length: 1<<32 - 1})...))

	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) == 0 {
			return
		}
		s := New(newStore(map[string]*mem{"disk": newMem(5 << 20)}, "disk"))
		theirs, ours := net.Pipe()
		s.start(ours)
		go io.Copy(io.Discard, theirs)
		start := time.Now()
		theirs.Write(append(preludes[int(input[0])%len(preludes)], input[1:]...))
		theirs.Close()
		s.active.Wait()
		require.Less(t, time.Since(start), time.Second)
		require.Zero(t, s.shared.used.Load())
		require.Empty(t, s.registry.open)
	})
}
