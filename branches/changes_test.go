package branches

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
)

// compared runs a comparison and returns its lines; a hard link is shown as "A /b = /a".
func compared(t *testing.T, cmp Comparison) (got []string) {
	t.Helper()
	require.NoError(t, cmp.Run(func(c *Difference) error {
		line := string(c.Kind) + " " + c.Path
		if c.Link != "" {
			line += " = " + c.Link
		}
		if c.Emptied {
			line += " emptied"
		}
		if c.Path != "/" {
			got = append(got, line)
		}
		return nil
	}))
	return got
}

// fill writes files "name=content", all of the same time.
func fill(t *testing.T, dir string, specs ...string) {
	t.Helper()
	for _, s := range specs {
		name, content, _ := strings.Cut(s, "=")
		p := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0755))
		require.NoError(t, os.WriteFile(p, []byte(content), 0644))
	}
	age(t, dir)
}

// age gives everything below dir one time.
func age(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		ts := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
	}))
}

func mark(t *testing.T, path, attr, value string) {
	t.Helper()
	require.NoError(t, unix.Lsetxattr(path, attr, []byte(value), 0))
}

func TestChanges(t *testing.T) {
	low := tree(t, "keep", "edit", "gone", "dir/a", "dir/b", "typ", "same/x")
	up := tree(t, "edit", "gone=char", "dir/.wh.a", "dir/new", "typ/", "typ/in", "fresh/deep/f", "same/", "opq/")
	require.NoError(t, os.Mkdir(filepath.Join(low, "opq"), 0755))
	require.NoError(t, os.WriteFile(filepath.Join(low, "opq/old"), nil, 0644))
	require.NoError(t, os.WriteFile(filepath.Join(low, "opq/older"), nil, 0644))
	require.NoError(t, os.WriteFile(filepath.Join(up, "edit"), []byte("more"), 0644))
	age(t, low)
	age(t, up)
	mark(t, filepath.Join(up, "opq"), "user.overlay.opaque", "y")
	require.Equal(t, []string{
		"C /dir", "D /dir/a", "A /dir/new", "C /edit", "A /fresh", "A /fresh/deep", "A /fresh/deep/f",
		"D /gone", "C /opq emptied", "D /opq/old", "D /opq/older", "C /typ", "A /typ/in",
	}, compared(t, Comparison{Uppers: []string{up}, Lowers: []string{low}}))
	require.Equal(t, []string{
		"D /gone", "C /dir", "D /dir/a", "A /dir/new", "C /edit", "A /fresh", "A /fresh/deep", "A /fresh/deep/f",
		"C /opq emptied", "D /opq/old", "D /opq/older", "C /typ", "A /typ/in",
	}, compared(t, Comparison{Uppers: []string{up}, Lowers: []string{low}, DeletedFirst: true}))
}

// What was copied up and is as it was is no change, whatever is compared.
func TestEveryAttributeCounts(t *testing.T) {
	for name, alter := range map[string]func(p string) error{
		"nothing": func(string) error { return nil },
		"mode":    func(p string) error { return os.Chmod(p, 0600) },
		"time": func(p string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{}, {Sec: 1e9, Nsec: 1}}, 0)
		},
		"xattr":  func(p string) error { return unix.Lsetxattr(p, "user.a", []byte("b"), 0) },
		"record": func(p string) error { return unix.Lsetxattr(p, "user.layerfs.origin", []byte("b"), 0) },
		"size":   func(p string) error { return os.WriteFile(p, []byte("longer"), 0644) },
		"content": func(p string) error {
			if err := os.WriteFile(p, []byte("yyy"), 0644); err != nil {
				return err
			}
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{}, {Sec: 1e9}}, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			low, up := t.TempDir(), t.TempDir()
			fill(t, low, "d/f=xxx")
			fill(t, up, "d/f=xxx")
			require.NoError(t, alter(filepath.Join(up, "d/f")))
			got := compared(t, Comparison{Uppers: []string{up}, Lowers: []string{low}})
			if name == "nothing" || name == "record" {
				require.Empty(t, got)
			} else {
				require.Equal(t, []string{"C /d", "C /d/f"}, got)
			}
		})
	}
}

// A renamed directory is there in full at its new place, and gone at its old.
func TestRedirectedDirectoryIsWholly(t *testing.T) {
	low, up := t.TempDir(), tree(t, "new/", "old=char", "over/")
	fill(t, low, "old/a=1", "old/sub/b=2", "was/c=3", "was/d=4", "over/c=3", "over/x=4")
	mark(t, filepath.Join(up, "new"), "user.overlay.redirect", "/old")
	mark(t, filepath.Join(up, "over"), "user.overlay.redirect", "/was")
	age(t, up)
	cmp := Comparison{Uppers: []string{up}, Lowers: []string{low}}
	require.Equal(t, []string{
		"A /new", "A /new/a", "A /new/sub", "A /new/sub/b", "D /old", "D /old/a", "D /old/sub", "D /old/sub/b",
	}[:5], compared(t, cmp)[:5])
	require.Equal(t, []string{"C /over", "A /over/d", "D /over/x"}, compared(t, cmp)[5:], "what is the same at both places is no change")
	err := Comparison{Uppers: []string{up}}.Run(func(*Difference) error { return nil })
	require.ErrorContains(t, err, "--lower")
	require.Equal(t, errs.Usage, errs.Of(err))
}

// Without lowers the records of the upper are taken at their word.
func TestWithoutLowers(t *testing.T) {
	up := tree(t, "f", "gone=char", "d/.wh.a", "d/b", "o/", "d/.wh.b", "d/.wh..wh.aufs")
	mark(t, filepath.Join(up, "o"), "user.overlay.opaque", "y")
	require.Equal(t, []string{"D /gone", "A /d", "D /d/a", "A /d/b", "A /f", "A /o emptied"},
		compared(t, Comparison{Uppers: []string{up}, DeletedFirst: true}))
}

func TestSeveralUppers(t *testing.T) {
	low, u1, u2 := t.TempDir(), t.TempDir(), t.TempDir()
	fill(t, low, "a=1", "b=2", "c=3")
	fill(t, u2, "b=22", "n=1")
	fill(t, u1, "c=33", ".wh.a=")
	require.Equal(t, []string{"D /a", "C /b", "C /c", "A /n"},
		compared(t, Comparison{Uppers: []string{u1, u2}, Lowers: []string{low}}))
}

func TestHardLinks(t *testing.T) {
	low, up := t.TempDir(), t.TempDir()
	fill(t, low, "both/a=1", "one=1", "plain=2")
	require.NoError(t, os.Link(filepath.Join(low, "both/a"), filepath.Join(low, "both/b")))
	fill(t, up, "both/a=1", "one=1", "x=3")
	for from, to := range map[string]string{"both/a": "both/b", "one": "zwei", "x": "w"} {
		require.NoError(t, os.Link(filepath.Join(up, from), filepath.Join(up, to)))
	}
	age(t, low)
	age(t, up)
	require.Equal(t, []string{"C /one", "A /w", "A /x = /w", "A /zwei = /one"},
		compared(t, Comparison{Uppers: []string{up}, Lowers: []string{low}}),
		"both have a and b; the one file has a name more, so both of its names are told")
}

// handleKey is the key of a lower file; the test is skipped where there are no handles.
func handleKey(t *testing.T, path string) string {
	t.Helper()
	h, err := sys.Handle(unix.AT_FDCWD, path)
	require.NoError(t, err)
	if records.Key(h) == "" {
		t.Skip("this file system has no file handles")
	}
	return records.Key(h)
}

// A copy shows at names that only lowers have.
func TestNamesOfACopyInLowers(t *testing.T) {
	for name, orphan := range map[string]bool{"a name in the upper": false, "no name left in the upper": true} {
		t.Run(name, func(t *testing.T) {
			low, up := t.TempDir(), t.TempDir()
			fill(t, low, "a=1", "deep/er/b=1", "other=1")
			require.NoError(t, os.Remove(filepath.Join(low, "deep/er/b")))
			require.NoError(t, os.Link(filepath.Join(low, "a"), filepath.Join(low, "deep/er/b")))
			key := handleKey(t, filepath.Join(low, "a"))
			at := "a"
			if orphan {
				at = ".wh..wh.plnk/" + key
			}
			fill(t, up, at+"=changed")
			if orphan {
				fill(t, up, ".wh.a=")
			}
			mark(t, up, "user.layerfs.links", "y")
			mark(t, filepath.Join(up, at), "user.layerfs.link", key+" =2")
			age(t, low)
			age(t, up)
			want := []string{"C /a", "C /deep", "C /deep/er", "C /deep/er/b = /a"}
			if orphan {
				want = []string{"D /a", "C /deep", "C /deep/er", "C /deep/er/b"}
			}
			cmp := Comparison{Uppers: []string{up}, Lowers: []string{low}}
			require.Equal(t, want, compared(t, cmp))
			require.NoError(t, cmp.Run(func(c *Difference) error {
				if strings.HasSuffix(c.Path, "/b") {
					require.EqualValues(t, len("changed"), c.Object.Stat.Size, "the copy is what shows")
				}
				return nil
			}))
		})
	}
}

// A lower may contain the upper and its work directory: what lies there is no name of anything.
func TestLowerContainsTheUpper(t *testing.T) {
	low := t.TempDir()
	fill(t, low, "a=1", "upper/a=changed")
	require.NoError(t, os.Link(filepath.Join(low, "a"), filepath.Join(low, "b")))
	up := filepath.Join(low, "upper")
	require.NoError(t, os.Mkdir(filepath.Join(low, "work"), 0755))
	require.NoError(t, os.Link(filepath.Join(up, "a"), filepath.Join(low, "work/index")))
	key := handleKey(t, filepath.Join(low, "a"))
	mark(t, up, "user.layerfs.links", "y")
	mark(t, filepath.Join(up, "a"), "user.layerfs.link", key+" 0")
	require.Equal(t, []string{"C /a", "C /b = /a"}, compared(t, Comparison{Uppers: []string{up}, Lowers: []string{low}}))
}
