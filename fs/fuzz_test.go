package fs

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// The owner of a file may write anything into the attribute of
// xattr_permissions: what it makes of a file is all or nothing, and never
// another kind of file than a device out of a regular one.
func FuzzOverride(f *testing.F) {
	for _, s := range []string{"0:0:0755", "1000:1000:0100644:file", "0:0:0644:char-1-3", "::", "0:0:0644:block-1-", "4294967296:0:0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, typ := range []uint32{unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK} {
			was := sys.Stat{Mode: typ | 0640, UID: 7, GID: 8, Rdev: 9}
			st := was
			if !parseOverride(s, &st) && st != was {
				t.Fatalf("%q is refused but changes %+v to %+v", s, was, st)
			}
			if typ == unix.S_IFDIR && !st.IsDir() {
				t.Fatalf("%q makes a directory %o", s, st.Mode)
			}
		}
	})
}
