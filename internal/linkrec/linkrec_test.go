package linkrec

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRecords(t *testing.T) {
	for text, want := range map[string]bool{
		"h01ab 2": true, "h01ab =3": true, "i7 -1": true,
		"": false, "h01ab": false, "h 1": false, "x01 1": false, "h01AB 1": false, "h01 one": false, "h01 99999999999": false,
	} {
		r, ok := Parse(text)
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
	_, ok := Parse(Key(make([]byte, maxHandle)) + " 1")
	require.True(t, ok, "the longest key is one")
}
