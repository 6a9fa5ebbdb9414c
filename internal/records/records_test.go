package records

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLink(t *testing.T) {
	for text, want := range map[string]bool{
		"h01ab 2": true, "h01ab =3": true, "i7 -1": true,
		"": false, "h01ab": false, "h 1": false, "x01 1": false, "h01AB 1": false, "h01 one": false, "h01 99999999999": false,
	} {
		r, ok := ParseLink(text)
		require.Equal(t, want, ok, "%q", text)
		if ok {
			require.Equal(t, text, r.String())
		}
	}
}

func TestKey(t *testing.T) {
	require.Equal(t, "h0102ff", Key([]byte{1, 2, 255}))
	require.Empty(t, Key(nil), "a file system without handles")
	require.Empty(t, Key(make([]byte, maxHandle+1)))
	require.True(t, IsKey(Key(make([]byte, maxHandle))), "the longest key is one")
}
