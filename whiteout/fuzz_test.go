package whiteout

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

func FuzzParseFormat(f *testing.F) {
	for _, s := range []string{"overlay trusted", "aufs user", "", "xattr", "overlay  user"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := ParseFormat(s); err == nil && v.String() != s {
			t.Fatalf("%q parses as %q", s, v)
		}
	})
}

func FuzzCleanRedirect(f *testing.F) {
	for _, s := range []string{"/a/b", "b", "..", "/..", "/a/../../etc", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := CleanRedirect(s)
		if r == "" {
			return
		}
		if r != s || filepath.Clean(r) != r || r == ".." {
			t.Fatalf("%q accepted as %q", s, r)
		}
	})
}

// Whatever begins with .wh. is nobody's to make, and nothing else is refused:
// one name too few is a way to delete what is not one's own.
func FuzzReserved(f *testing.F) {
	for _, s := range []string{".wh.a", ".wh", ".wh..wh..opq", "a.wh.b", ".WH.a", ".wh.\x00", "\u202e.wh."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if Reserved(s) != (len(s) >= 4 && s[:4] == ".wh.") {
			t.Fatalf("%q: %v", s, Reserved(s))
		}
		for _, format := range []Format{{Overlay, Trusted}, {AUFS, User}, {Xattr, User}} {
			if n := format.MaxName(255); n > 255 || n < 242 {
				t.Fatalf("names of %d bytes", n)
			}
		}
	})
}

// An attribute that overlay, fuse-overlayfs or layerfs read for their own
// purposes must be refused in every spelling in which they read it.
func FuzzReservedXattr(f *testing.F) {
	for _, s := range []string{"user.overlay.opaque", "trusted.overlay.", "user.layerfs.x", "user.fuseoverlayfs.opaque", "security.fuseoverlayfs.override_stat", "user.containers.override_stat", "user.over", "user.overlayx"} {
		f.Add(s)
	}
	own := []string{
		"overlay.opaque", "overlay.redirect", "overlay.whiteout", "overlay.origin", "overlay.metacopy", "overlay.nlink", "overlay.impure",
		"layerfs.format", "layerfs.origin", "layerfs.link", "layerfs.links",
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, ns := range []string{"user.", "trusted."} {
			for _, o := range own {
				if strings.HasPrefix(s, ns+o) && !ReservedXattr(s) {
					t.Fatalf("%q may be set", s)
				}
			}
		}
		if ReservedXattr(s) && !strings.Contains(s, "overlay") && !strings.Contains(s, "layerfs") && !strings.Contains(s, "containers.override_") {
			t.Fatalf("%q is refused", s)
		}
	})
}

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
			if !ParseOverride(s, &st) && st != was {
				t.Fatalf("%q is refused but changes %+v to %+v", s, was, st)
			}
			if typ == unix.S_IFDIR && !st.IsDir() {
				t.Fatalf("%q makes a directory %o", s, st.Mode)
			}
		}
	})
}
