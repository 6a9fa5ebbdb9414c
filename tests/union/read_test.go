package union

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// layer is one branch of a table test: files as put takes them, and extended
// attributes as "path attr value".
type layer struct {
	files  []string
	xattrs []string
}

func (b *box) layers(ls []layer) (paths []string) {
	b.t.Helper()
	for i, l := range ls {
		dir := fmt.Sprintf("%s/layer%d", b.dir, i)
		put(b.t, b.dir, fmt.Sprintf("layer%d/", i))
		put(b.t, dir, l.files...)
		for _, x := range l.xattrs {
			f := strings.SplitN(x, " ", 3)
			require.NoError(b.t, unix.Lsetxattr(dir+"/"+f[0], f[1], []byte(f[2]), 0))
		}
		paths = append(paths, dir)
	}
	return paths
}

// TestUnionReadsEveryDialect has a row for each form of whiteout and opaque
// directory, alone and mixed; top first.
func TestUnionReadsEveryDialect(t *testing.T) {
	below := layer{files: []string{"a=low", "b=low", "d/x=low", "d/y=low"}}
	for name, c := range map[string]struct {
		layers []layer
		want   []string // of the root
		d      []string // of d, nil when it must not be there
	}{
		"device":                 {[]layer{{files: []string{"a%"}}, below}, []string{"b", "d"}, []string{"x", "y"}},
		"aufs file":              {[]layer{{files: []string{".wh.a="}}, below}, []string{"b", "d"}, []string{"x", "y"}},
		"both":                   {[]layer{{files: []string{"a%", ".wh.b="}}, below}, []string{"d"}, []string{"x", "y"}},
		"directory by device":    {[]layer{{files: []string{"d%"}}, below}, []string{"a", "b"}, nil},
		"directory by file":      {[]layer{{files: []string{".wh.d="}}, below}, []string{"a", "b"}, nil},
		"opaque file":            {[]layer{{files: []string{"d/.wh..wh..opq=", "d/new="}}, below}, []string{"a", "b", "d"}, []string{"new"}},
		"opaque user.overlay":    {[]layer{{[]string{"d/new="}, []string{"d user.overlay.opaque y"}}, below}, []string{"a", "b", "d"}, []string{"new"}},
		"opaque fuseoverlayfs":   {[]layer{{[]string{"d/new="}, []string{"d user.fuseoverlayfs.opaque y"}}, below}, []string{"a", "b", "d"}, []string{"new"}},
		"opaque n":               {[]layer{{[]string{"d/new="}, []string{"d user.overlay.opaque n"}}, below}, []string{"a", "b", "d"}, []string{"new", "x", "y"}},
		"xattr whiteout":         {[]layer{{[]string{"d/x="}, []string{"d user.overlay.opaque x", "d/x user.overlay.whiteout 1"}}, below}, []string{"a", "b", "d"}, []string{"y"}},
		"xattr without mark":     {[]layer{{[]string{"d/x="}, []string{"d/x user.overlay.whiteout 1"}}, below}, []string{"a", "b", "d"}, []string{"x", "y"}},
		"entry beats whiteout":   {[]layer{{files: []string{"a=top", ".wh.a="}}, below}, []string{"a", "b", "d"}, []string{"x", "y"}},
		"dir beside whiteout":    {[]layer{{files: []string{"d/new=", ".wh.d="}}, below}, []string{"a", "b", "d"}, []string{"new"}},
		"whiteout in opaque":     {[]layer{{files: []string{"d/.wh..wh..opq=", "d/x%", "d/.wh.y=", "d/new="}}, below}, []string{"a", "b", "d"}, []string{"new"}},
		"whiteout on the lowest": {[]layer{{files: []string{"a=", "d/"}}, {files: []string{"b%", ".wh.c=", "d/x%"}}}, []string{"a", "d"}, []string{}},
		"back again above":       {[]layer{{files: []string{"d/again="}}, {files: []string{".wh.d="}}, below}, []string{"a", "b", "d"}, []string{"again"}},
		"file over directory":    {[]layer{{files: []string{"d=file"}}, below}, []string{"a", "b", "d"}, nil},
		"directory over file":    {[]layer{{files: []string{"a/in="}}, below}, []string{"a", "b", "d"}, []string{"x", "y"}},
		"whiteout is a dir":      {[]layer{{files: []string{".wh.a/"}}, below}, []string{"a", "b", "d"}, []string{"x", "y"}},
		"aufs own files":         {[]layer{{files: []string{".wh..wh.aufs=", ".wh..wh.plnk/", ".wh..wh.orph/"}}, below}, []string{"a", "b", "d"}, []string{"x", "y"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			paths := b.layers(c.layers)
			for _, how := range []string{"read-only", "as lowers"} {
				o := "lowerdir=" + strings.Join(paths, ":")
				if how == "as lowers" {
					o += ",upperdir=" + b.upper + ",workdir=" + b.work
				}
				umount := b.mountWith(o, b.mnt)
				for range 2 { // before and after listings have been cached
					require.ElementsMatch(t, c.want, ls(t, b.mnt), how)
					require.NoFileExists(t, b.mnt+"/.wh.a")
					if c.d != nil {
						require.ElementsMatch(t, c.d, ls(t, b.mnt+"/d"), how)
					}
				}
				umount()
			}
		})
	}
}

func TestUnionReadsTrusted(t *testing.T) {
	needRoot(t)
	b := newBox(t)
	paths := b.layers([]layer{
		{[]string{"d/new="}, []string{"d trusted.overlay.opaque y"}},
		{[]string{"d/old=", "m/f="}, nil},
		{[]string{"e/moved="}, nil},
	})
	require.NoError(t, unix.Lsetxattr(paths[1]+"/m", "trusted.overlay.redirect", []byte("/e"), 0))
	b.mountWith("lowerdir="+strings.Join(paths, ":"), b.mnt)
	require.Equal(t, []string{"new"}, ls(t, b.mnt+"/d"))
	require.ElementsMatch(t, []string{"f", "moved"}, ls(t, b.mnt+"/m"))
}

func TestUnionManyBranches(t *testing.T) {
	for _, n := range []int{1, 2, 5, 128} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			b := newBox(t)
			var all []layer
			for i := range n {
				files := []string{fmt.Sprintf("d/f%d=%d", i, i), fmt.Sprintf("common=%d", i)}
				if i > 0 {
					files = append(files, fmt.Sprintf("d/.wh.f%d=", i+1)) // hides what the branch below has
				}
				all = append(all, layer{files: files})
			}
			paths := b.layers(all)
			b.mountWith("lowerdir="+strings.Join(paths, ":")+",upperdir="+b.upper+",workdir="+b.work, b.mnt)
			require.Equal(t, "0", read(t, b.mnt+"/common"))
			want := []string{"f0"}
			if n > 1 {
				want = append(want, "f1")
			}
			require.ElementsMatch(t, want, ls(t, b.mnt+"/d"))
			for i := range n {
				require.NoError(t, unix.Unlink(b.mnt+"/common"))
				require.NoFileExists(t, b.mnt+"/common")
				write(t, b.mnt+"/common", fmt.Sprint(i))
			}
		})
	}
}
