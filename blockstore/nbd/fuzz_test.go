package nbd

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// hang is more than a machine stalls, and less than a server waits that
// waits for what will not come.
const hang = 5 * time.Second

// FuzzServer feeds a client's side of a connection. The first byte says how
// much of it is by the book, so that the commands are reached: nothing, a
// handshake with simple replies or one with all extensions, and after these
// perhaps the magic of every request.
func FuzzServer(f *testing.F) {
	simple := bytes.Join([][]byte{{0, 0, 0, 3}, optionBytes(optGo, goData(""))}, nil)
	full := bytes.Join([][]byte{{0, 0, 0, 3}, optionBytes(optStructuredReply, nil),
		optionBytes(optSetMetaContext, metaQuery("disk", contextName)), optionBytes(optGo, goData("disk", 1, 2, 3))}, nil)
	preludes := [][]byte{nil, simple, full, simple, full}
	f.Add(append([]byte{0}, full...))
	f.Add(append([]byte{0, 0, 0, 0, 1}, optionBytes(optListMetaContext, metaQuery("disk"))...))
	f.Add(append([]byte{0, 0, 0, 0, 0}, optionBytes(optExportName, []byte("disk"))...))
	for cmd := range uint16(9) {
		r := request{cmd: cmd, off: 60000, length: 10}
		f.Add(append([]byte{3}, append(requestBytes(r), "0123456789"...)...))
		r.flags, r.length = allowed[min(int(cmd), len(allowed)-1)]|cmdFlagFUA, 70000
		f.Add(append([]byte{4}, append(requestBytes(r), make([]byte, 70000)...)...))
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
		mode := int(input[0]) % len(preludes)
		stream := bytes.Clone(input[1:])
		if mode >= 3 {
			putMagic(stream)
		}
		theirs.Write(preludes[mode])
		theirs.Write(stream)
		theirs.Close()
		s.active.Wait()
		require.Less(t, time.Since(start), hang)
		require.Zero(t, s.shared.used.Load())
		require.Empty(t, s.registry.open)
	})
}

// putMagic makes the headers in stream, as they follow each other, begin as
// they have to.
func putMagic(stream []byte) {
	for len(stream) >= requestSize {
		be.PutUint32(stream, magicRequest)
		r, _ := parseRequest(stream)
		stream = stream[requestSize:]
		if r.cmd == cmdWrite {
			stream = stream[min(int(r.length), len(stream)):]
		}
	}
}
