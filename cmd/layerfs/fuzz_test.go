package main

import (
	"strings"
	"testing"
)

// FuzzOptions looks for option strings that panic, that lose characters, or
// whose branch lists name empty directories.
func FuzzOptions(f *testing.F) {
	for _, seed := range []string{
		`lowerdir=/a\:b:/c,upperdir=u,workdir=w,,volatile`, `context="a,b",x`, `a\`, `br=/u=rw+nolwh:/l=ro`, `:\:`, `br:=rw`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, token := range splitOptions(s) {
			if token == "" {
				t.Errorf("%q: an empty option", s)
			}
		}
		if !strings.ContainsAny(s, `\"`) {
			if got := strings.Join(splitOptions(s), ","); got != strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == ',' }), ",") {
				t.Errorf("%q became %q", s, got)
			}
		}
		for _, path := range splitPaths(s) {
			if path == "" || unescape(path) == "" {
				t.Errorf("%q: an empty path", s)
			}
		}
		if _, err := parseOptions(true, []string{s}); err != nil && err.Error() == "" {
			t.Errorf("%q: an error that says nothing", s)
		}
	})
}

// FuzzBranches looks for branch strings that panic or give a branch without a
// directory, or another number of them than there are separators for.
func FuzzBranches(f *testing.F) {
	for _, seed := range []string{"/a=rw:/b=ro", "/a=rw+nolwh:/b=rr+wh:/c", ":", "=rw", "/a=xx", `/a\:b=ro`, "/a==rw", "/a=ro+", "/x=y=ro"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		specs, err := parseBranches(s)
		if err != nil {
			return
		}
		if len(specs) == 0 || len(specs) > strings.Count(s, ":")+1 {
			t.Errorf("%q: %d branches", s, len(specs))
		}
		for _, spec := range specs {
			if spec.Path == "" {
				t.Errorf("%q: a branch without a directory", s)
			}
		}
	})
}
