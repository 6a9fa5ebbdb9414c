package nbd

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBlockStatus(t *testing.T) {
	m := newMem(4<<30 + 100)
	for _, block := range []int64{0, 1, 5, 100, 60000} {
		m.blocks[block] = make([]byte, memBlock)
	}
	_, path := serve(t, newStore(map[string]*mem{"disk": m}, "disk"))
	c := connect(t, path, "", true)
	status := func(flags uint16, off uint64, length uint32) []uint32 {
		a := c.call(request{cmd: cmdBlockStatus, flags: flags, off: off, length: length}, nil)
		require.Zero(t, a.code, a.text)
		return a.list
	}
	const b = memBlock
	require.Equal(t, []uint32{2*b - 10, 0, 3 * b, 3, 5, 0}, status(0, 10, 5*b-5))
	require.Equal(t, []uint32{2*b - 10, 0}, status(cmdFlagReqOne, 10, 5*b-5))
	require.Equal(t, []uint32{3, 0}, status(cmdFlagReqOne, 10, 3))
	require.Equal(t, []uint32{2 * b, 0, 3 * b, 3, b, 0, 94 * b, 3, b, 0, 59899 * b, 3, b, 0, 5535*b - 1, 3}, status(0, 0, 1<<32-1))
	require.Equal(t, []uint32{59899 * b, 3}, status(cmdFlagReqOne, 101*b, 4<<30-101*b))
	require.Equal(t, []uint32{100, 3}, status(0, 4<<30, 100))

	// For one extent the export is not asked about the whole device.
	before := m.count("extents")
	status(cmdFlagReqOne, 0, 1<<32-1)
	require.Equal(t, before+1, m.count("extents"))
}

// A checkered device has more extents than one reply takes.
func TestManyExtents(t *testing.T) {
	m := newMem(3 * maxDescriptors * memBlock)
	for block := int64(0); block < 3*maxDescriptors; block += 2 {
		m.blocks[block] = zeros[:]
	}
	_, path := serve(t, newStore(map[string]*mem{"disk": m}, "disk"))
	c := connect(t, path, "", true)
	a := c.call(request{cmd: cmdBlockStatus, length: 3 * maxDescriptors * memBlock}, nil)
	require.Len(t, a.list, 2*maxDescriptors)
	for i := 0; i < len(a.list); i += 2 {
		require.EqualValues(t, memBlock, a.list[i])
		require.EqualValues(t, 3*(i/2%2), a.list[i+1])
	}
}

type badExtents struct {
	Export
	list []Extent
}

func (b badExtents) Extents(int64, int64) ([]Extent, error) { return b.list, nil }

// An export that miscounts gives an error instead of nonsense.
func TestBadExtents(t *testing.T) {
	for _, list := range [][]Extent{
		nil, {{100, true}}, {{512, true}, {1, false}}, {{0, true}, {512, true}}, {{-5, true}, {517, false}}, {{1 << 40, false}},
	} {
		c := &conn{exp: &opened{Export: badExtents{list: list}}}
		_, err := c.descriptors(0, 512, 10)
		require.ErrorContains(t, err, "extents of 512 bytes at 0")
	}
}
