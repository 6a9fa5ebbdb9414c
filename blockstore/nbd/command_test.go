package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/internal/errs"
)

func pattern(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(p)
	return p
}

// Every request that is refused before the export sees it, with and without
// structured replies. After each the stream has to be in step.
func TestRefusals(t *testing.T) {
	const size = 16 << 20
	for name, tc := range map[string]struct {
		req  request
		code uint32
	}{
		"unknown command":          {request{cmd: 99, length: 512}, nbdEINVAL},
		"resize":                   {request{cmd: 8, length: 512}, nbdEINVAL},
		"read nothing":             {request{cmd: cmdRead}, nbdEINVAL},
		"read past the end":        {request{cmd: cmdRead, off: size - 1, length: 2}, nbdEINVAL},
		"read beyond the end":      {request{cmd: cmdRead, off: size, length: 1}, nbdEINVAL},
		"read, overflowing":        {request{cmd: cmdRead, off: 1<<64 - 1, length: 2}, nbdEINVAL},
		"read, negative":           {request{cmd: cmdRead, off: 1 << 63, length: 512}, nbdEINVAL},
		"read too much":            {request{cmd: cmdRead, length: maxPayload + 1}, nbdEINVAL},
		"read far too much":        {request{cmd: cmdRead, length: 1<<32 - 1}, nbdEINVAL},
		"read, unknown flag":       {request{cmd: cmdRead, flags: 1 << 5, length: 1}, nbdEINVAL},
		"read, flag of another":    {request{cmd: cmdRead, flags: cmdFlagNoHole, length: 1}, nbdEINVAL},
		"write nothing":            {request{cmd: cmdWrite}, nbdEINVAL},
		"write past the end":       {request{cmd: cmdWrite, off: size - 1, length: 512}, nbdENOSPC},
		"write, overflowing":       {request{cmd: cmdWrite, off: 1<<64 - 1, length: 512}, nbdENOSPC},
		"write too much":           {request{cmd: cmdWrite, length: maxPayload + 1}, nbdEINVAL},
		"write, DF":                {request{cmd: cmdWrite, flags: cmdFlagDF, length: 100 << 10}, nbdEINVAL},
		"flush a range":            {request{cmd: cmdFlush, length: 1}, nbdEINVAL},
		"flush an offset":          {request{cmd: cmdFlush, off: 1}, nbdEINVAL},
		"trim nothing":             {request{cmd: cmdTrim}, nbdEINVAL},
		"trim past the end":        {request{cmd: cmdTrim, off: 1, length: size}, nbdEINVAL},
		"trim, flag":               {request{cmd: cmdTrim, flags: cmdFlagFastZero, length: 1}, nbdEINVAL},
		"zero nothing":             {request{cmd: cmdWriteZeroes}, nbdEINVAL},
		"zero past the end":        {request{cmd: cmdWriteZeroes, off: 1, length: size}, nbdENOSPC},
		"cache past the end":       {request{cmd: cmdCache, off: size, length: 1}, nbdEINVAL},
		"cache, flag":              {request{cmd: cmdCache, flags: cmdFlagReqOne, length: 1}, nbdEINVAL},
		"status of nothing":        {request{cmd: cmdBlockStatus}, nbdEINVAL},
		"status past the end":      {request{cmd: cmdBlockStatus, off: size, length: 1}, nbdEINVAL},
		"status, flag":             {request{cmd: cmdBlockStatus, flags: cmdFlagDF, length: 1}, nbdEINVAL},
		"fast zero of no block":    {request{cmd: cmdWriteZeroes, flags: cmdFlagFastZero, off: 1, length: 2*memBlock - 2}, nbdENOTSUP},
		"fast zero without a hole": {request{cmd: cmdWriteZeroes, flags: cmdFlagFastZero | cmdFlagNoHole, length: memBlock}, nbdENOTSUP},
	} {
		for _, structured := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", name, structured), func(t *testing.T) {
				s, m := single()
				_, path := serve(t, s)
				c := connect(t, path, "disk", structured)
				var payload []byte
				if tc.req.cmd == cmdWrite {
					payload = make([]byte, tc.req.length)
				}
				a := c.call(tc.req, payload)
				require.Equal(t, tc.code, a.code)
				require.Equal(t, structured, a.text != "", a.text)
				require.Zero(t, c.call(request{cmd: cmdFlush, cookie: 7}, nil).code, "out of step")
				require.Equal(t, map[string]int{"flush": 1}, m.ops())
			})
		}
	}
}

// What needs structured replies is refused without them.
func TestUnstructured(t *testing.T) {
	s, _ := single()
	_, path := serve(t, s)
	c := connect(t, path, "", false)
	require.EqualValues(t, nbdEINVAL, c.call(request{cmd: cmdRead, flags: cmdFlagDF, length: 1}, nil).code)
	require.EqualValues(t, nbdEINVAL, c.call(request{cmd: cmdBlockStatus, length: 1}, nil).code)
}

func TestErrorValues(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code uint32
	}{
		{syscall.ENOSPC, nbdENOSPC}, {syscall.EDQUOT, nbdENOSPC}, {syscall.EFBIG, nbdENOSPC},
		{errs.New(errs.NoSpace, "the pool is full"), nbdENOSPC},
		{syscall.EPERM, nbdEPERM}, {syscall.EACCES, nbdEPERM}, {syscall.EROFS, nbdEPERM},
		{syscall.EINVAL, nbdEINVAL}, {syscall.EIO, nbdEIO}, {syscall.ENOMEM, nbdENOMEM},
		{syscall.EOVERFLOW, nbdEOVERFLOW}, {syscall.ENOTSUP, nbdENOTSUP}, {syscall.ESHUTDOWN, nbdESHUTDOWN},
		{syscall.EBADF, nbdEIO}, {errors.New("who knows"), nbdEIO}, {errs.New(errs.Corrupt, "needs check"), nbdEIO},
	} {
		require.Equal(t, tc.code, errorCode(fmt.Errorf("wrapped: %w", tc.err)), "%v", tc.err)
	}
}

// Every command passes on its export's error: by its value, and with its
// text where there is room.
func TestExportErrors(t *testing.T) {
	for _, structured := range []bool{false, true} {
		s, m := single()
		m.hook = func(op string, _, _ int64) error { return fmt.Errorf("no %s: %w", op, syscall.ENOSPC) }
		_, path := serve(t, s)
		c := connect(t, path, "disk", structured)
		for op, r := range map[string]request{
			"read": {cmd: cmdRead, length: 512}, "write": {cmd: cmdWrite, length: 512},
			"flush": {cmd: cmdFlush}, "discard": {cmd: cmdTrim, length: 512},
			"unmap": {cmd: cmdWriteZeroes, length: 512}, "zero": {cmd: cmdWriteZeroes, flags: cmdFlagNoHole, length: 512},
			"extents": {cmd: cmdBlockStatus, length: 512},
		} {
			var payload []byte
			if r.cmd == cmdWrite {
				payload = make([]byte, r.length)
			}
			a := c.call(r, payload)
			if r.cmd == cmdBlockStatus && !structured {
				continue // refused before
			}
			require.EqualValues(t, nbdENOSPC, a.code, op)
			if structured {
				require.Contains(t, a.text, "no "+op, op)
			}
		}
		m.setHook(nil) // the last disconnect flushes
	}
}

// ENOTSUP is for fast zeroes only, and texts have their limits.
func TestErrorDetails(t *testing.T) {
	s, m := single()
	_, path := serve(t, s)
	c := connect(t, path, "disk", true)
	m.setHook(func(string, int64, int64) error { return syscall.ENOTSUP })
	require.EqualValues(t, nbdEIO, c.call(request{cmd: cmdWriteZeroes, length: memBlock}, nil).code)
	require.EqualValues(t, nbdENOTSUP, c.call(request{cmd: cmdWriteZeroes, flags: cmdFlagFastZero, length: memBlock}, nil).code)
	m.setHook(func(string, int64, int64) error {
		return errors.New("\xff\x00" + strings.Repeat("é", maxMessage))
	})
	a := c.call(request{cmd: cmdFlush}, nil)
	require.Equal(t, "flush: ??"+strings.Repeat("é", (maxMessage-9)/2), a.text)
	m.setHook(nil)
}

// FUA is accepted with every command, and flushes after those that write.
func TestFUA(t *testing.T) {
	for cmd, flushes := range map[uint16]int{
		cmdRead: 0, cmdWrite: 1, cmdTrim: 1, cmdWriteZeroes: 1, cmdCache: 0, cmdBlockStatus: 0,
	} {
		for _, length := range []uint32{512, 128 << 10, 3 << 20} {
			s, m := single()
			_, path := serve(t, s)
			c := connect(t, path, "disk", true)
			var payload []byte
			if cmd == cmdWrite {
				payload = make([]byte, length)
			}
			require.Zero(t, c.call(request{cmd: cmd, flags: cmdFlagFUA, length: length}, payload).code)
			require.Equal(t, flushes, m.count("flush"))
			changes, durable := m.state()
			require.Equal(t, changes*flushes, durable, "flushed too early")
		}
	}
}

// Lengths around all the limits at which the way of a payload changes.
func TestReadWrite(t *testing.T) {
	lengths := []int{
		1, 511, 4096, 4097, inPlaceSize - 1, inPlaceSize, inPlaceSize + 1, inbufSize, inbufSize + 1,
		pieceSize - 1, pieceSize, pieceSize + 1, wholeSize - 1, wholeSize, wholeSize + 1, 3*pieceSize + 5, maxPayload,
	}
	for _, structured := range []bool{false, true} {
		m := newMem(maxPayload + 1000)
		_, path := serve(t, newStore(map[string]*mem{"disk": m}, "disk"))
		c := connect(t, path, "", structured)
		for i, n := range lengths {
			data, off := pattern(n), uint64(i*7)
			require.Zero(t, c.call(request{cmd: cmdWrite, off: off, length: uint32(n)}, data).code)
			a := c.call(request{cmd: cmdRead, off: off, length: uint32(n)}, nil)
			require.Zero(t, a.code)
			require.True(t, bytes.Equal(data, a.data), "%d bytes", n)
			if !structured {
				continue
			}
			a = c.call(request{cmd: cmdRead, flags: cmdFlagDF, off: off, length: uint32(n)}, nil)
			if n > wholeSize {
				require.EqualValues(t, nbdEOVERFLOW, a.code)
				continue
			}
			require.Equal(t, []uint16{chunkOffsetData}, a.chunks)
			require.True(t, bytes.Equal(data, a.data), "%d bytes, DF", n)
		}
	}
}

// Zeros are sent as holes, unless the client wants no fragments.
func TestHoles(t *testing.T) {
	s, m := single()
	_, path := serve(t, s)
	c := connect(t, path, "", true)
	m.poke([]byte{1}, 2*pieceSize+1234)
	a := c.call(request{cmd: cmdRead, length: 4 * pieceSize}, nil)
	require.Equal(t, []uint16{chunkOffsetHole, chunkOffsetHole, chunkOffsetData, chunkOffsetHole}, a.chunks)
	require.Len(t, a.data, 4*pieceSize)
	require.EqualValues(t, 1, a.data[2*pieceSize+1234])
	require.Equal(t, 1, bytes.Count(a.data, []byte{1}))
	require.Equal(t, []uint16{chunkOffsetHole}, c.call(request{cmd: cmdRead, length: 1}, nil).chunks)
	require.Equal(t, []uint16{chunkOffsetData}, c.call(request{cmd: cmdRead, flags: cmdFlagDF, length: pieceSize}, nil).chunks)

	for n := range 300 {
		p := make([]byte, n+1)
		require.True(t, allZero(p))
		p[rand.IntN(n+1)] = 1
		require.False(t, allZero(p))
	}
}

// An error in a later part of a long read comes after the parts before, or
// as the end of the connection where a simple reply leaves no other way.
func TestLateReadError(t *testing.T) {
	s, m := single()
	m.hook = func(op string, off, _ int64) error {
		if op == "read" && off >= 2*pieceSize {
			return syscall.EIO
		}
		return nil
	}
	_, path := serve(t, s)
	c := connect(t, path, "", true)
	a := c.call(request{cmd: cmdRead, length: 4 * pieceSize}, nil)
	require.Equal(t, []uint16{chunkOffsetHole, chunkOffsetHole, chunkError}, a.chunks)
	require.EqualValues(t, nbdEIO, a.code)
	require.Zero(t, c.call(request{cmd: cmdRead, length: 1}, nil).code)

	c = connect(t, path, "", false)
	require.EqualValues(t, nbdEIO, c.call(request{cmd: cmdRead, off: 2 * pieceSize, length: wholeSize + 1}, nil).code)
	require.EqualValues(t, 0, c.call(request{cmd: cmdRead, length: 1}, nil).code)
	c.write(requestBytes(request{cmd: cmdRead, length: wholeSize + 1}))
	require.EqualValues(t, 0, be.Uint32(c.read(16)[4:]))
	c.read(2 * pieceSize)
	c.closed()
}

func TestTrimAndZero(t *testing.T) {
	s, m := single()
	_, path := serve(t, s)
	c := connect(t, path, "", true)
	fill := func() { m.poke(bytes.Repeat([]byte{9}, 4*memBlock), 0) }
	status := func() []uint32 { return c.call(request{cmd: cmdBlockStatus, length: 4 * memBlock}, nil).list }

	fill()
	require.Zero(t, c.call(request{cmd: cmdTrim, off: 100, length: 2 * memBlock}, nil).code)
	require.Equal(t, []uint32{memBlock, 0, memBlock, 3, 2 * memBlock, 0}, status())
	for _, flags := range []uint16{0, cmdFlagFastZero, cmdFlagNoHole} {
		fill()
		require.Zero(t, c.call(request{cmd: cmdWriteZeroes, flags: flags, off: 100, length: 3 * memBlock}, nil).code)
		want := append(bytes.Repeat([]byte{9}, 100), make([]byte, 3*memBlock)...)
		want = append(want, bytes.Repeat([]byte{9}, memBlock-100)...)
		a := c.call(request{cmd: cmdRead, length: 4 * memBlock}, nil)
		require.True(t, bytes.Equal(want, a.data))
		if flags == cmdFlagNoHole {
			require.Equal(t, []uint32{4 * memBlock, 0}, status())
		} else {
			require.Equal(t, []uint32{memBlock, 0, 2 * memBlock, 3, memBlock, 0}, status())
		}
	}
	require.Zero(t, c.call(request{cmd: cmdCache, length: 4096}, nil).code)
	// One request may zero or discard more than any payload holds.
	require.Zero(t, c.call(request{cmd: cmdWriteZeroes, length: 16 << 20}, nil).code)
	require.Zero(t, c.call(request{cmd: cmdTrim, length: 16 << 20}, nil).code)
}
