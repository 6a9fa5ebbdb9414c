package nbd

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var modelSeed = flag.Uint64("nbd.seed", 0, "seed of TestModel, 0 for a new one")

// TestModel sends batches of random requests, many at a time and on several
// connections, and compares with a flat array. The requests of one batch
// touch different parts of the device, because their order is open.
func TestModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-nbd.seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	rounds := 60
	if testing.Short() {
		rounds = 20
	}

	const lanes, lane = 24, 6 << 20
	m := newMem(lanes * lane)
	_, path := serve(t, newStore(map[string]*mem{"disk": m}, "disk"))
	want := make([]byte, lanes*lane)
	var clients []*client
	for i := range 3 {
		clients = append(clients, connect(t, path, "", i > 0))
	}
	for range rounds {
		c := clients[rnd.IntN(len(clients))]
		c.SetDeadline(time.Now().Add(20 * time.Second))
		b := newBatch(rnd, c.structured, want)
		for i := range 1 + rnd.IntN(lanes) {
			b.add(uint64(i)*lane, lane)
		}
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(b.stream)
			sent <- err
		}()
		b.receive(c)
		require.NoError(t, <-sent)
	}
	for off := 0; off < len(want); off += lane {
		got := make([]byte, lane)
		m.peek(got, int64(off))
		require.True(t, bytes.Equal(want[off:off+lane], got), "the lane at %d differs", off)
	}
}

// batch is some requests that are sent together.
type batch struct {
	rnd        *rand.Rand
	structured bool
	want       []byte // the device, with the batch's changes applied
	stream     []byte
	sent       map[uint64]request
	reads      map[uint64][]byte // what they have to return
}

func newBatch(rnd *rand.Rand, structured bool, want []byte) *batch {
	return &batch{rnd: rnd, structured: structured, want: want, sent: map[uint64]request{}, reads: map[uint64][]byte{}}
}

// add makes a random request within the lane that begins at start.
func (b *batch) add(start uint64, size int) {
	limits := []int{10, 5000, 70000, 300000, pieceSize + 10, wholeSize + 10, size}
	n := 1 + b.rnd.IntN(limits[b.rnd.IntN(len(limits))])
	r := request{cookie: b.rnd.Uint64(), off: start + uint64(b.rnd.IntN(size-n+1)), length: uint32(n)}
	part := b.want[r.off : r.off+uint64(n)]
	var payload []byte
	switch b.rnd.IntN(8) {
	case 0, 1, 2:
		r.cmd = cmdRead
		if b.structured && n <= wholeSize && b.rnd.IntN(3) == 0 {
			r.flags = cmdFlagDF
		}
		b.reads[r.cookie] = bytes.Clone(part)
	case 3, 4, 5:
		r.cmd = cmdWrite
		payload = bytes.Repeat([]byte{byte(b.rnd.Uint32())}, n)
		copy(payload, "marker")
		copy(part, payload)
	case 6:
		r.cmd, r.flags = cmdWriteZeroes, uint16(b.rnd.IntN(2))*cmdFlagNoHole
		clear(part)
	case 7:
		r.cmd, r.off, r.length = cmdFlush, 0, 0
	}
	if r.cmd != cmdRead && b.rnd.IntN(10) == 0 {
		r.flags |= cmdFlagFUA
	}
	b.sent[r.cookie] = r
	b.stream = append(append(b.stream, requestBytes(r)...), payload...)
}

// receive takes all answers; the chunks of one may come between those of
// another.
func (b *batch) receive(c *client) {
	c.t.Helper()
	parts := map[uint64]*answer{}
	for len(b.sent) > 0 {
		a := c.piece(b.sent, parts)
		if a == nil {
			continue
		}
		require.Zero(c.t, a.code, a.text)
		if want := b.reads[a.cookie]; want != nil {
			require.True(c.t, bytes.Equal(want, a.data), "%d bytes at %d", len(want), b.sent[a.cookie].off)
		}
		delete(b.sent, a.cookie)
	}
}
