package data

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// Found by TestStressTree: an upper with a renamed directory became a lower,
// a directory below the renamed one was renamed in turn, and after the next
// mount it was empty. The second redirect leads through the first one, at
// which the lookup gave up.
func TestRedirectThroughRedirect(t *testing.T) {
	for name, c := range map[string]struct{ first, then, want string }{
		"the child in the lowest branch only": {"mv a b", "mv b/sub c", "b b/deep b/deep/x b/deep/x/y c c/f"},
		"the child in both":                   {"mv a b; touch b/sub/g", "mv b/sub c", "b b/deep b/deep/x b/deep/x/y c c/f c/g"},
		"deeper":                              {"mv a b", "mv b/deep/x c", "b b/deep b/sub b/sub/f c c/y"},
		"a redirect beside it":                {"mkdir n; mv a n/a; mv n/a n/b", "mv n/b/sub c", "c c/f n n/b n/b/deep n/b/deep/x n/b/deep/x/y"},
		"the old name is new":                 {"mv a b; mkdir -p a/sub; touch a/sub/g", "mv b/sub c", "a a/sub a/sub/g b b/deep b/deep/x b/deep/x/y c c/f"},
	} {
		for _, dialect := range []string{"overlay", "aufs", "xattr"} {
			t.Run(name+"/"+dialect, func(t *testing.T) {
				e := harness.New(t).Tree("l", "a/sub/f=1\na/deep/x/y=2")
				lowers := union{e.P("l")}
				for g, script := range []string{c.first, c.then} {
					upper, work := e.P(fmt.Sprint("u", g)), e.P(fmt.Sprint("w", g))
					require.NoError(t, os.Mkdir(upper, 0755))
					require.NoError(t, os.Mkdir(work, 0755))
					opts := "lowerdir=" + strings.Join(lowers, ":") + ",upperdir=" + upper + ",workdir=" + work + ",whiteout=" + dialect
					m := e.Mount(opts)
					e.Sh("cd m; " + script)
					live := list(mounted(t, m.Point))
					m = m.Remount(opts)
					require.Equal(t, live, list(mounted(t, m.Point)), "after a remount")
					m.Unmount()
					lowers = append(union{upper}, lowers...)
					require.Equal(t, live, list(lowers.merged(t)), "on disk")
				}
				require.Equal(t, c.want, list(lowers.merged(t)))
			})
		}
	}
}

// Kernel overlayfs records a directory that was renamed in its place by the
// new name alone. On the way of a path from the root that stands for the name
// beside, not for one in the directory in which the path was asked for.
func TestRelativeRedirects(t *testing.T) {
	ns := " @" + harness.TrustedNS() + "overlay.redirect="
	for name, c := range map[string]struct {
		branches []string
		want     string
	}{
		"at the end of a path":                 {[]string{"c/\nc" + ns + "/d/n", "d/n/\nd/n" + ns + "e\nd/.wh.e=", "d/e/f=\ne/wrong="}, "c c/f d d/n d/n/f e e/wrong"},
		"on the way of a path":                 {[]string{"c/\nc" + ns + "/n/s", "n/\nn" + ns + "e\n.wh.e=", "e/s/f="}, "c c/f n n/s n/s/f"},
		"at the end, behind one from the root": {[]string{"c/\nc" + ns + "/b/n", "b/n/\nb" + ns + "/a\nb/n" + ns + "e\n.wh.a=", "a/e/f="}, "b b/e b/e/f b/n b/n/f c c/f"},
	} {
		t.Run(name, func(t *testing.T) {
			e := harness.New(t)
			var u union
			for i, spec := range c.branches {
				e.Tree(fmt.Sprint("b", i), spec)
				u = append(u, e.P(fmt.Sprint("b", i)))
			}
			require.Equal(t, c.want, list(u.merged(t)), "this test's own rules")
			m := e.Mount("lowerdir=" + strings.Join(u, ":"))
			require.Equal(t, c.want, list(mounted(t, m.Point)))
		})
	}
}

// list returns the names of a tree in one line.
func list(tree map[string]string) string {
	return strings.Join(slices.Sorted(maps.Keys(tree)), " ")
}
