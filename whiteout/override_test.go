package whiteout

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

func TestParseOverride(t *testing.T) {
	file := sys.Stat{Mode: unix.S_IFREG | 0600, UID: 1, GID: 2}
	for value, want := range map[string]sys.Stat{
		"0:5:4755":               {Mode: unix.S_IFREG | 04755, GID: 5},
		"7:8:0644:file":          {Mode: unix.S_IFREG | 0644, UID: 7, GID: 8},
		"0:0:0600:pipe":          {Mode: unix.S_IFIFO | 0600},
		"0:0:0600:char-1:3":      {Mode: unix.S_IFCHR | 0600, Rdev: 0x103},
		"0:0:0600:block-259-256": {Mode: unix.S_IFBLK | 0600, Rdev: 0x10300 | 256<<12},
		// What makes no sense changes nothing.
		"": file, "0:0": file, "x:0:0644": file, "0:0:0999": file, "0:0:0644:dir": file, "0:0:0644:char": file,
		"0:0:0644:nonsense": file, "4294967296:0:0644": file,
	} {
		st := file
		require.Equal(t, want != file, ParseOverride(value, &st), "%q", value)
		require.Equal(t, want, st, "%q", value)
	}
}
