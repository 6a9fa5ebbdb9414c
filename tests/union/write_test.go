package union

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// script is a sequence of changes on a merged tree; it must give the same
// tree in every dialect, before and after a remount, as on a plain directory
// that begins with the same content.
type script struct {
	name  string
	lower []string
	run   func(t *testing.T, m string)
}

func rename(t *testing.T, m, from, to string) {
	t.Helper()
	require.NoError(t, unix.Rename(filepath.Join(m, from), filepath.Join(m, to))) // os.Rename replaces no directory
}

func removeAll(t *testing.T, m string, names ...string) {
	t.Helper()
	for _, n := range names {
		require.NoError(t, os.RemoveAll(filepath.Join(m, n)))
	}
}

var base = []string{"f=low", "g=low2", "d/a=1", "d/b=2", "d/sub/c=3", "d/sub/deep/e=4", "e/x=5", "empty/", "l->f", "t/u/v=6"}

var scripts = []script{
	{"delete a file", base, func(t *testing.T, m string) { removeAll(t, m, "f", "d/a") }},
	{"delete and recreate", base, func(t *testing.T, m string) {
		removeAll(t, m, "f")
		write(t, m+"/f", "new")
		removeAll(t, m, "f")
		write(t, m+"/f", "newer")
	}},
	{"file becomes directory", base, func(t *testing.T, m string) { removeAll(t, m, "f"); put(t, m, "f/in=1") }},
	{"directory becomes file", base, func(t *testing.T, m string) { removeAll(t, m, "d"); put(t, m, "d=file") }},
	{"directory again is empty", base, func(t *testing.T, m string) { removeAll(t, m, "d"); put(t, m, "d/") }},
	{"directory again with subdirectory again", base, func(t *testing.T, m string) { removeAll(t, m, "d"); put(t, m, "d/sub/new=1") }},
	{"rmdir over whiteouts", base, func(t *testing.T, m string) {
		removeAll(t, m, "d/sub/deep", "d/sub/c")
		require.NoError(t, os.Remove(m+"/d/sub"))
		require.Error(t, os.Remove(m+"/d"))
	}},
	{"rename a lower file", base, func(t *testing.T, m string) { rename(t, m, "f", "f2"); rename(t, m, "d/a", "e/a2") }},
	{"rename over a lower file", base, func(t *testing.T, m string) { rename(t, m, "f", "g"); rename(t, m, "d/a", "d/b") }},
	{"rename over a whiteout", base, func(t *testing.T, m string) { removeAll(t, m, "g"); rename(t, m, "f", "g") }},
	{"rename there and back", base, func(t *testing.T, m string) { rename(t, m, "f", "h"); rename(t, m, "h", "f") }},
	{"rename a symbolic link", base, func(t *testing.T, m string) { rename(t, m, "l", "d/l2") }},
	{"rename a lower directory", base, func(t *testing.T, m string) { rename(t, m, "d", "d2") }},
	{"rename a merged directory", base, func(t *testing.T, m string) {
		write(t, m+"/d/new", "n")
		removeAll(t, m, "d/a")
		rename(t, m, "d", "d2")
		write(t, m+"/d2/sub/more", "m")
	}},
	{"rename twice", base, func(t *testing.T, m string) { rename(t, m, "d", "d2"); rename(t, m, "d2", "e/d3") }},
	{"rename a directory back", base, func(t *testing.T, m string) { rename(t, m, "d", "d2"); rename(t, m, "d2", "d") }},
	{"rename a directory over an empty one", base, func(t *testing.T, m string) { rename(t, m, "d", "empty") }},
	{"rename a directory over one emptied", base, func(t *testing.T, m string) { removeAll(t, m, "e/x"); rename(t, m, "d", "e") }},
	{"rename a new directory over one emptied", base, func(t *testing.T, m string) {
		put(t, m, "n/1=1")
		removeAll(t, m, "e/x")
		rename(t, m, "n", "e")
	}},
	{"rename a directory over a whiteout", base, func(t *testing.T, m string) { removeAll(t, m, "e"); rename(t, m, "d", "e") }},
	{"rename a new directory over a whiteout", base, func(t *testing.T, m string) {
		removeAll(t, m, "e")
		put(t, m, "n/1=1")
		rename(t, m, "n", "e")
	}},
	{"rename out of a renamed directory", base, func(t *testing.T, m string) {
		rename(t, m, "d", "d2")
		rename(t, m, "d2/sub", "sub2")
		rename(t, m, "d2/a", "a2")
		removeAll(t, m, "d2")
	}},
	{"make anew what was renamed away", base, func(t *testing.T, m string) {
		rename(t, m, "d", "d2")
		put(t, m, "d/other=1")
		rename(t, m, "d2/sub", "d/sub")
	}},
	{"rename the inner, then the outer", base, func(t *testing.T, m string) {
		rename(t, m, "d/sub/deep", "d/deep2")
		rename(t, m, "d", "t/u/d")
		rename(t, m, "t", "t2")
	}},
	{"delete in a renamed directory", base, func(t *testing.T, m string) {
		rename(t, m, "d", "d2")
		removeAll(t, m, "d2/sub/deep", "d2/b")
		write(t, m+"/d2/b", "back")
	}},
	{"exchange files", base, func(t *testing.T, m string) { exchange(t, m, "f", "g") }},
	{"exchange directories", base, func(t *testing.T, m string) { exchange(t, m, "d", "e") }},
	{"exchange file and directory", base, func(t *testing.T, m string) { exchange(t, m, "f", "d"); put(t, m, "f/new=1") }},
	{"exchange with something new", base, func(t *testing.T, m string) { put(t, m, "n/1=1"); exchange(t, m, "n", "d") }},
	{"chmod, truncate, append", base, func(t *testing.T, m string) {
		require.NoError(t, os.Chmod(m+"/f", 0600))
		require.NoError(t, os.Chmod(m+"/d", 0700))
		require.NoError(t, os.Truncate(m+"/g", 2))
		appendTo(t, m+"/d/a", "+")
	}},
	{"hard links", base, func(t *testing.T, m string) {
		require.NoError(t, os.Link(m+"/f", m+"/f2"))
		require.NoError(t, os.Link(m+"/f2", m+"/d/f3"))
		appendTo(t, m+"/d/f3", "+")
		removeAll(t, m, "f")
	}},
	{"link over a whiteout", base, func(t *testing.T, m string) {
		removeAll(t, m, "g")
		require.NoError(t, os.Link(m+"/f", m+"/g"))
	}},
	{"symbolic link and fifo over whiteouts", base, func(t *testing.T, m string) {
		removeAll(t, m, "f", "d")
		require.NoError(t, os.Symlink("g", m+"/f"))
		require.NoError(t, unix.Mkfifo(m+"/d", 0600))
	}},
}

func exchange(t *testing.T, m, a, b string) {
	t.Helper()
	require.NoError(t, unix.Renameat2(unix.AT_FDCWD, m+"/"+a, unix.AT_FDCWD, m+"/"+b, unix.RENAME_EXCHANGE))
}

func appendTo(t *testing.T, path, s string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(s)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func TestUnionWrite(t *testing.T) {
	for _, dialect := range []string{"overlay", "aufs", "xattr"} {
		for _, s := range scripts {
			t.Run(dialect+"/"+strings.ReplaceAll(s.name, " ", "_"), func(t *testing.T) {
				b := newBox(t)
				put(t, b.lower, s.lower...)
				before := dump(t, b.lower)
				put(t, b.dir, "plain/")
				put(t, b.dir+"/plain", s.lower...)
				s.run(t, b.dir+"/plain")
				want := dump(t, b.dir+"/plain")
				umount := b.mount("whiteout="+dialect, "fsync=0")
				s.run(t, b.mnt)
				require.Equal(t, want, dump(t, b.mnt))
				umount()
				umount = b.mount()
				require.Equal(t, want, dump(t, b.mnt), "after a remount")
				umount()
				require.Equal(t, before, dump(t, b.lower), "the lower has changed")
				b.mountWith("lowerdir="+b.upper+":"+b.lower, b.mnt)
				require.Equal(t, want, dump(t, b.mnt), "the upper as a lower")
			})
		}
	}
}

// What a mount writes in the overlay dialect, kernel overlay must show alike.
func TestUnionUpperIsKernelOverlays(t *testing.T) {
	needRoot(t)
	for _, s := range scripts {
		t.Run(strings.ReplaceAll(s.name, " ", "_"), func(t *testing.T) {
			b := newBox(t)
			put(t, b.lower, s.lower...)
			umount := b.mount("whiteout=overlay", "fsync=0")
			s.run(t, b.mnt)
			want := dump(t, b.mnt)
			umount()
			require.NoError(t, unix.Mount("overlay", b.mnt, "overlay", unix.MS_RDONLY,
				"redirect_dir=follow,lowerdir="+b.upper+":"+b.lower))
			defer unix.Unmount(b.mnt, 0)
			require.Equal(t, stripLinks(want), stripLinks(dump(t, b.mnt)))
		})
	}
}

// stripLinks takes link counts out: kernel overlay keeps no links together in lowers.
func stripLinks(s string) string {
	var out []string
	for _, line := range strings.Split(s, "\n") {
		if i := strings.Index(line, " links="); i >= 0 {
			j := strings.Index(line[i+1:], " ")
			line = line[:i] + line[i+1+j:]
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func TestUnionRenameFlags(t *testing.T) {
	b := newBox(t)
	put(t, b.lower, base...)
	b.mount()
	at := func(a, c string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, b.mnt+"/"+a, unix.AT_FDCWD, b.mnt+"/"+c, flags)
	}
	require.ErrorIs(t, at("f", "g", unix.RENAME_NOREPLACE), unix.EEXIST)
	require.ErrorIs(t, at("f", "nope", unix.RENAME_EXCHANGE), unix.ENOENT)
	require.ErrorIs(t, at("f", "h", unix.RENAME_WHITEOUT), unix.EINVAL)
	require.ErrorIs(t, at("d", "d/sub/in", 0), unix.EINVAL)
	require.ErrorIs(t, at("d", "e", 0), unix.ENOTEMPTY)
	require.ErrorIs(t, at("f", "d", 0), unix.EISDIR)
	require.ErrorIs(t, at("d", "f", 0), unix.ENOTDIR)
	require.NoError(t, os.Remove(b.mnt+"/g"))
	require.NoError(t, at("f", "g", unix.RENAME_NOREPLACE), "a whiteout is nothing")
	require.Equal(t, "low", read(t, b.mnt+"/g"))
}

func TestUnionRedirectOff(t *testing.T) {
	b := newBox(t)
	put(t, b.lower, base...)
	b.mount("redirect_dir=off")
	require.ErrorIs(t, os.Rename(b.mnt+"/d", b.mnt+"/d2"), unix.EXDEV)
	put(t, b.mnt, "n/1=1")
	require.NoError(t, os.Rename(b.mnt+"/n", b.mnt+"/n2"))
}
