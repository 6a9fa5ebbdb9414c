package fdcache

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/internal/sys"
)

func openDescriptors(t *testing.T) int {
	e, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(e)
}

func TestBoundAndPins(t *testing.T) {
	before := openDescriptors(t)
	c := New(3)
	open := func() (int, error) { return sys.OpenRoot("/") }
	slots := make([]Slot, 10)
	pinned, err := c.Acquire(&slots[0], open)
	require.NoError(t, err)
	for round := 0; round < 3; round++ {
		for i := 1; i < len(slots); i++ {
			_, err := c.Acquire(&slots[i], open)
			require.NoError(t, err)
			c.Release(&slots[i])
		}
	}
	require.LessOrEqual(t, c.n, 4)
	_, err = sys.FStat(pinned)
	require.NoError(t, err, "a pinned descriptor was closed")
	c.Release(&slots[0])
	c.Purge()
	require.Equal(t, 0, c.n)
	require.Equal(t, before, openDescriptors(t))
}

func TestDropKeepsPinned(t *testing.T) {
	c := New(3)
	var s Slot
	fd, err := c.Acquire(&s, func() (int, error) { return sys.OpenRoot("/") })
	require.NoError(t, err)
	c.Drop(&s)
	_, err = sys.FStat(fd)
	require.NoError(t, err)
	c.Release(&s)
	c.Drop(&s)
	_, err = sys.FStat(fd)
	require.Error(t, err)
}
