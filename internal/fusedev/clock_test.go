package fusedev

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// ticked is a connection whose device is a pipe, with waiting readers; a byte in the
// pipe is a request that waits.
func ticked(t *testing.T, waiting, wanted int32) (c *Conn, request func()) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	c = newConn(int(r.Fd()), "")
	c.waiting.Store(waiting)
	c.wanted.Store(wanted)
	return c, func() { _, err := w.Write([]byte{0}); require.NoError(t, err) }
}

func TestClock(t *testing.T) {
	t.Run("a reader that keeps up is left alone", func(t *testing.T) {
		c, _ := ticked(t, 0, 1) // the caller runs on before the reader is back
		var k clock
		for now := range uint64(10 * busyTicks) {
			require.False(t, c.look(&k, now+1))
			k.last = now + 1
		}
		require.EqualValues(t, 1, c.wanted.Load())
	})
	t.Run("one that does not gets help", func(t *testing.T) {
		c, request := ticked(t, 0, 1)
		request()
		var k clock
		for now := range uint64(busyTicks) {
			require.Equal(t, now == busyTicks-1, c.look(&k, now+1))
			k.last = now + 1
		}
		require.EqualValues(t, 2, c.wanted.Load())
	})
	t.Run("one that is kept gets help at once", func(t *testing.T) {
		c, _ := ticked(t, 0, 1)
		require.True(t, c.look(&clock{last: 7}, 7))
		require.EqualValues(t, 1, c.wanted.Load(), "it is only stood in for")
	})
	t.Run("help that is not needed goes", func(t *testing.T) {
		c, _ := ticked(t, 1, 3)
		var k clock
		for now := range uint64(slackTicks) {
			require.False(t, c.look(&k, now+1))
			k.last = now + 1
		}
		require.EqualValues(t, 2, c.wanted.Load())
	})
}

// Buffers that were large stay so, a few of them, until nothing is asked for.
func TestWarmBuffers(t *testing.T) {
	p := &inputPool{size: minInput}
	var all []*input
	for range 2 * warmInputs {
		in, err := p.get()
		require.NoError(t, err)
		in.used = 1 << 20
		all = append(all, in)
	}
	for _, in := range all {
		p.put(in)
	}
	require.Equal(t, warmInputs, warm(p))
	p.cool()
	require.Zero(t, warm(p))
}

func warm(p *inputPool) (n int) {
	for _, in := range p.free {
		if in.used > 0 {
			n++
		}
	}
	return n
}
