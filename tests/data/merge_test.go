package data

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// union merges branches by what lies on disk: the topmost first.
type union []string

// part is a directory, or whatever else answers for a name, in one branch.
type part struct {
	branch int
	path   string
}

// merged lists the whole tree: where the file lies that answers for a name.
func (u union) merged(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	var into func(rel string, parts []part)
	into = func(rel string, parts []part) {
		for _, name := range names(t, parts) {
			found := u.lookup(parts, name)
			if len(found) == 0 {
				continue
			}
			at := filepath.Join(rel, name)
			out[at] = found[0].path
			if typeOf(found[0].path) == unix.S_IFDIR {
				into(at, found)
			}
		}
	}
	into("", u.roots())
	return out
}

func (u union) roots() []part {
	var parts []part
	for i, b := range u {
		parts = append(parts, part{i, b})
	}
	return parts
}

// names lists what might be in a directory; lookup says whether it is.
func names(t testing.TB, parts []part) []string {
	t.Helper()
	seen := map[string]bool{}
	for _, p := range parts {
		entries, err := os.ReadDir(p.path)
		require.NoError(t, err)
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".wh.") {
				seen[e.Name()] = true
			}
		}
	}
	var list []string
	for name := range seen {
		list = append(list, name)
	}
	sort.Strings(list)
	return list
}

// lookup finds name in a merged directory: nothing, a file, or the parts of a
// directory. It follows ovl_lookup in the kernel.
func (u union) lookup(parts []part, name string) []part {
	var found []part
	want, rooted := name, false
	for i := 0; i < len(parts); i++ {
		at := parts[i]
		if rooted {
			at.path = u[at.branch]
		}
		p, stop := inBranch(at, &want, len(found) > 0)
		if p != "" {
			found = append(found, part{at.branch, p})
		}
		if stop {
			break
		}
		if !rooted && strings.HasPrefix(want, "/") { // from here on a path from the root
			parts, i, rooted = u.roots(), at.branch, true
		}
	}
	return found
}

// inBranch looks in one branch for want, a name in the directory at or a
// path from the root; a redirect on the way changes want for the branches
// below. onlyDir says that a directory was found above. It returns where it
// is, "" for nowhere, and whether the branches below do not count.
func inBranch(at part, want *string, onlyDir bool) (path string, stop bool) {
	dir, rest := at.path, strings.TrimPrefix(*want, "/")
	for {
		name, post, more := strings.Cut(rest, "/")
		path := filepath.Join(dir, name)
		beside := typeOf(filepath.Join(dir, ".wh."+name)) == unix.S_IFREG
		switch typ := typeOf(path); {
		case typ == 0:
			return "", stop || beside
		case isWhiteout(dir, path, typ):
			return "", true
		case typ != unix.S_IFDIR:
			if more || onlyDir {
				path = ""
			}
			return path, true
		}
		opaque, redirect := marks(path)
		switch {
		case opaque || redirect == "" && beside:
			stop = true
		case redirect != "":
			before := strings.TrimSuffix(*want, rest)
			if strings.HasPrefix(redirect, "/") {
				before, stop = "", false
			}
			*want = strings.TrimSuffix(before+redirect+"/"+post, "/")
		}
		if !more {
			return path, stop
		}
		dir, rest = path, post
	}
}

// typeOf returns what lies at path, 0 for nothing.
func typeOf(path string) uint32 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Mode & unix.S_IFMT
}

// xattr returns an attribute, in either namespace, or "".
func xattr(path, name string) (value string, has bool) {
	buf := make([]byte, unix.PathMax)
	for _, ns := range []string{"trusted.", "user."} {
		if n, err := unix.Lgetxattr(path, ns+name, buf); err == nil {
			return string(buf[:n]), true
		}
	}
	return "", false
}

func isWhiteout(dir, path string, typ uint32) bool {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return false
	}
	switch typ {
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFREG:
		_, has := xattr(path, "overlay.whiteout")
		form, _ := xattr(dir, "overlay.opaque")
		return has && st.Size == 0 && form == "x"
	}
	return false
}

// marks reads what a directory says of itself.
func marks(dir string) (opaque bool, redirect string) {
	if text, err := os.ReadFile(filepath.Join(dir, ".wh..wh..opq")); err == nil {
		return len(text) == 0, string(text)
	}
	if v, _ := xattr(dir, "overlay.opaque"); v == "y" {
		return true, ""
	}
	redirect, _ = xattr(dir, "overlay.redirect")
	return false, redirect
}

// mounted is merged for a tree that somebody else has merged.
func mounted(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(root, p); rel != "." {
			out[rel] = p
		}
		return err
	}))
	return out
}

// describe lists what a user sees of a tree below one of its directories.
func describe(t testing.TB, tree map[string]string, top string) []string {
	t.Helper()
	type id struct{ dev, ino uint64 }
	group := map[id]string{} // links are told by the first name
	var list []string
	for rel := range tree {
		if rel == top || strings.HasPrefix(rel, top+"/") {
			list = append(list, rel)
		}
	}
	sort.Strings(list)
	for i, rel := range list {
		p := tree[rel]
		st := harness.Stat(t, p)
		line := fmt.Sprintf("%s %06o %d:%d %d.%09d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			line += fmt.Sprintf(" size %d %s", st.Size, harness.Sum(t, p))
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			require.NoError(t, err)
			line += " -> " + target
		}
		if k := (id{st.Dev, st.Ino}); st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if group[k] == "" {
				group[k] = rel
			}
			line += fmt.Sprintf(" one of %d, first %s", st.Nlink, group[k])
		}
		for _, name := range harness.ListXattr(t, p) {
			if strings.HasPrefix(name, "user.t") {
				line += fmt.Sprintf(" %s=%q", name, harness.GetXattr(t, p, name))
			}
		}
		list[i] = line
	}
	return list
}

// The rules themselves, on branches that are easy to read.
func TestMergeRules(t *testing.T) {
	for name, c := range map[string]struct {
		branches []string // the topmost first
		want     string
	}{
		"the topmost file answers":              {[]string{"f=1", "f=2\ng=3"}, "f g"},
		"directories merge":                     {[]string{"d/a=", "d/b="}, "d d/a d/b"},
		"a file hides a directory":              {[]string{"d=", "d/b=", "d/c="}, "d"},
		"a directory hides a file and stops":    {[]string{"d/a=", "d=", "d/c="}, "d d/a"},
		".wh.":                                  {[]string{".wh.f=", "f=", "f="}, ""},
		"an entry beats .wh. beside it":         {[]string{"d/a=\n.wh.d=", "d/b="}, "d d/a"},
		".wh..wh..opq":                          {[]string{"d/a=\nd/.wh..wh..opq=", "d/b="}, "d d/a"},
		".wh..wh..opq with a path":              {[]string{"d/a=\nd/.wh..wh..opq=/e\n.wh.e=", "d/b=\ne/c="}, "d d/a d/c"},
		"opaque":                                {[]string{"d/a=\nd @user.overlay.opaque=y", "d/b="}, "d d/a"},
		"an xattr whiteout":                     {[]string{"d/f= @user.overlay.whiteout=y\nd @user.overlay.opaque=x", "d/f=1\nd/g="}, "d d/g"},
		"is a file in any other directory":      {[]string{"d/f= @user.overlay.whiteout=y", "d/f=1\nd/g="}, "d d/f d/g"},
		"a redirect from the root":              {[]string{"n/a=\nn @user.overlay.redirect=/d/e", "n/x=\nd/e/b="}, "d d/e d/e/b n n/a n/b"},
		"a redirect beside":                     {[]string{"d/n/a=\nd/n @user.overlay.redirect=e", "d/e/b="}, "d d/e d/e/b d/n d/n/a d/n/b"},
		"a redirect goes by a redirect":         {[]string{"c/\nc @user.overlay.redirect=/b/sub\nb/.wh.sub=", "b/\nb @user.overlay.redirect=/a\n.wh.a=", "a/sub/f="}, "b c c/f"},
		"opaque on the way ends after a branch": {[]string{"c/\nc @user.overlay.redirect=/b/sub", "b/x=\nb @user.overlay.opaque=y", "b/sub/f="}, "b b/x c"},
	} {
		t.Run(name, func(t *testing.T) {
			e := harness.New(t)
			var u union
			for i, spec := range c.branches {
				e.Tree(fmt.Sprint("b", i), spec)
				u = append(u, e.P(fmt.Sprint("b", i)))
			}
			require.Equal(t, c.want, list(u.merged(t)))
		})
	}
}
