package fs

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The triples are those that Podman's --userns=keep-id passes: what is stored
// as 0 is shown as 1, and so on.
func TestMapping(t *testing.T) {
	m := []IDMap{{Outer: 0, Inner: 1, Len: 1901}, {Outer: 1901, Inner: 0, Len: 1}, {Outer: 1902, Inner: 1902, Len: 63635}}
	for onDisk, inMount := range map[uint32]uint32{0: 1, 1900: 1901, 1901: 0, 1902: 1902, 70000: overflowID} {
		require.Equal(t, inMount, shown(m, onDisk))
		if inMount != overflowID {
			require.Equal(t, onDisk, stored(m, inMount))
		}
	}
	require.Equal(t, uint32(overflowID), stored(m, 70000))
	require.Equal(t, uint32(7), shown(nil, 7))
	require.Equal(t, uint32(7), stored(nil, 7))
}
