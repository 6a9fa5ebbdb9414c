package records

import (
	"strings"
	"testing"
)

// A record that is understood is written as it was understood.
func FuzzLink(f *testing.F) {
	for _, s := range []string{"h00ff 2", "i1 =-3", "h 1", "x1 1", "h1", "h1 =", "h1 99999999999", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, ok := ParseLink(text)
		if !ok {
			return
		}
		if again, ok := ParseLink(r.String()); !ok || again != r {
			t.Errorf("%q is read as %v, and what that is written as as %v", text, r, again)
		}
		if strings.ContainsAny(r.Key, "/.\x00") {
			t.Errorf("%q names the file %q", text, r.Key)
		}
	})
}

func FuzzRename(f *testing.F) {
	for _, s := range []string{"1 2\x00a/b\x00c", "1\x00a\x00b", "\x00\x00", "1 2\x00a", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, ok := ParseRename(text)
		if !ok {
			return
		}
		if again, ok := ParseRename(r.String()); !ok || again != r {
			t.Errorf("%q is read as %v, and what that is written as as %v", text, r, again)
		}
	})
}
