package layers

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// story changes a tree in every way there is.
const story = `
cd m
echo new >new; echo more >>edit; chmod 2750 mode; touch -d '2001-02-03 04:05:06.7' times
rm gone; rm -r gonedir; mv ren/deep moved; mv ren renamed; echo in >renamed/in
rm -r opq; mkdir opq; echo only >opq/only
rm -r typ; echo file >typ; rm typ2; mkdir typ2; echo x >typ2/x
ln h1 h3; echo linked >>h2
ln -s ../far/away sym; mkfifo pipe
truncate -s 3000000 sparse; printf x | dd of=sparse bs=1 seek=1500000 conv=notrunc 2>/dev/null
n=$(printf 'n%.0s' $(seq 180)); mkdir $n; echo long >$n/$n; echo u >"ünï code
line"
setfattr -n user.key -v value edit; setfattr -n user.on.dir -v value opq
`

func told(t *testing.T) (*harness.Env, *harness.Mount) {
	t.Helper()
	harness.RequireTool(t, "setfattr", "attr")
	e := harness.New(t).Tree("l", `edit=1
		mode=2
		times=3
		gone=4
		gonedir/x=5
		ren/deep/f=6
		ren/g=7
		opq/a=8
		opq/b/c=9
		typ/x=10
		typ2=11
		h1=12
		h2=>h1
		keep/k=13
		moved2/x=14`)
	m := e.Mount(e.RW())
	e.Sh(story)
	return e, m
}

// What GNU tar and rm make of the layer, who know nothing of layers.
func TestLayerByTarAndRm(t *testing.T) {
	e, m := told(t)
	layer := diff(e, "layer.tar", m.Point)
	low, merged := read(t, e.P("l")), read(t, m.Point)
	requireCanonical(t, layer, low, merged)
	e.Sh(`cp -a l full
		tar --quoting-style=literal --null -tf layer.tar >/dev/null
		tar -tf layer.tar --quoting-style=literal | while IFS= read -r f; do
			case ${f##*/} in
			.wh..wh..opq) find "full/${f%/*}" -mindepth 1 -delete ;;
			.wh.*) d=${f%"${f##*/}"}; n=${f##*/.wh.}; n=${n#.wh.}; rm -r "full/$d$n" ;;
			esac
		done
		for f in typ typ2; do rm -rf full/$f; done # tar puts nothing in place of another type
		tar -xpf layer.tar -C full --exclude='.wh.*' --numeric-owner --xattrs --xattrs-include='*' --overwrite`)
	require.Equal(t, described(merged), described(read(t, e.P("full"))))
}

func TestRepeatedDiffsAreTheSame(t *testing.T) {
	e, m := told(t)
	layer := diff(e, "layer.tar", m.Point)
	sameBytes(t, layer, diff(e, "b.tar", m.Point), "once more")
	e.Sh("mkdir m2; cp -a u u2")
	m.Unmount()
	sameBytes(t, layer, diff(e, "c.tar", "--upper", e.P("u"), "--lower", e.P("l")), "of the upper")
	sameBytes(t, layer, diff(e, "d.tar", "--upper", e.P("u2"), "--lower", e.P("l")), "of a copy of the upper")
	r := e.Layerfs("diff", "--upper", e.P("u"), "--lower", e.P("l"))
	require.Zero(t, r.Code, r.Stderr)
	require.NoError(t, os.WriteFile(e.P("out.tar"), []byte(r.Stdout), 0644))
	sameBytes(t, layer, e.P("out.tar"), "on standard output")
	// The same tree made by other changes.
	e.Sh("mkdir l3 u3 w3 m3; cp -a l/. l3")
	extract(t, layer, e.P("l3"))
	lines := described(read(t, e.P("l3")))
	m3 := e.MountOn(e.P("m3"), "lowerdir="+e.P("l")+",upperdir="+e.P("u3")+",workdir="+e.P("w3"))
	e.Sh("rm -r m3/* && cp -a l3/. m3/")
	require.Equal(t, lines, described(read(t, m3.Point)))
	sameBytes(t, layer, diff(e, "e.tar", m3.Point), "of a tree that was copied there")
}

// What was written and not yet synced is in the layer of a live mount.
func TestOpenFilesAreInTheLayer(t *testing.T) {
	e := harness.New(t).Tree("l", "a=old")
	m := e.Mount(e.RW("writeback=1"))
	f, err := os.OpenFile(m.P("a"), os.O_WRONLY|os.O_TRUNC, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString("not closed yet")
	require.NoError(t, err)
	up := applied(e, "up", diff(e, "layer.tar", m.Point), "auto")
	data, err := os.ReadFile(filepath.Join(up, "a"))
	require.NoError(t, err)
	require.Equal(t, "not closed yet", string(data))
}

// An applied layer is a branch: mounted over its lower it shows the merged tree.
func TestAppliedLayersMount(t *testing.T) {
	e, m := told(t)
	layer := diff(e, "layer.tar", m.Point)
	merged := described(read(t, m.Point))
	m.Unmount()
	for _, dialect := range []string{"overlay", "aufs", "xattr"} {
		up := applied(e, "up-"+dialect, layer, dialect)
		again := e.Mount("lowerdir=" + up + ":" + e.P("l"))
		require.Equal(t, merged, described(read(t, again.Point)), dialect)
		again.Unmount()
	}
	if !harness.Root() {
		return
	}
	require.NoError(t, unix.Mount("overlay", e.P("m"), "overlay", unix.MS_RDONLY, "lowerdir="+e.P("up-overlay")+":"+e.P("l")))
	defer func() { require.NoError(t, unix.Unmount(e.P("m"), unix.MNT_DETACH)) }()
	require.Equal(t, merged, described(read(t, e.P("m"))), "kernel overlay")
}

func TestCompressedLayers(t *testing.T) {
	e, m := told(t)
	layer := diff(e, "layer.tar", m.Point)
	e.Sh("gzip -k layer.tar")
	sameBytes(t, layer, diff(e, "again.tar", "--upper", applied(e, "z", layer+".gz", "auto"), "--lower", e.P("l")), "gzip")
	r := e.Cmd(nil, "sh", "-c", harness.Bin()+" apply --to piped - <layer.tar.gz")
	require.Zero(t, r.Code, r.Stderr)
	sameBytes(t, layer, diff(e, "again.tar", "--upper", e.P("piped"), "--lower", e.P("l")), "from a pipe")
}

func TestMistakes(t *testing.T) {
	e := harness.New(t).Tree("l", "a=1").Tree("u", "b=2").Tree("x", "no.tar=hello")
	layer := diff(e, "layer.tar", "--upper", e.P("u"), "--lower", e.P("l"))
	e.Sh("head -c 1000 layer.tar >cut.tar")
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{2, "--upper", []string{"diff"}},
		{2, "not both", []string{"diff", e.P("m"), "--upper", e.P("u")}},
		{3, "gone", []string{"diff", "--upper", e.P("gone")}},
		{3, "gone", []string{"diff", "--upper", e.P("u"), "--lower", e.P("gone")}},
		{3, "no", []string{"diff", "--upper", e.P("u"), "-o", e.P("no/dir/out.tar")}},
		{3, e.P("m"), []string{"diff", e.P("m")}},
		{2, "--to", []string{"apply", layer}},
		{2, "missing", []string{"apply", "--to", e.P("t")}},
		{3, "gone.tar", []string{"apply", "--to", e.P("t"), e.P("gone.tar")}},
		{3, "no/dir", []string{"apply", "--to", e.P("no/dir"), layer}},
		{2, "nonsense", []string{"apply", "--to", e.P("t"), "--whiteout", "nonsense", layer}},
		{6, "cut off", []string{"apply", "--to", e.P("t"), e.P("cut.tar")}},
		{6, "no.tar", []string{"apply", "--to", e.P("t"), e.P("x/no.tar")}},
	} {
		r := e.Layerfs(c.args...)
		require.Equal(t, c.code, r.Code, "%v: %s", c.args, r.Stderr)
		require.Contains(t, r.Stderr, c.says, "%v", c.args)
		require.Equal(t, 1, strings.Count(r.Stderr, "\n"), "one line: %s", r.Stderr)
	}
	require.NoFileExists(t, e.P("t/b"))
	for _, name := range []string{"diff", "apply"} {
		r := e.Layerfs(name, "--help")
		require.Zero(t, r.Code)
		require.Contains(t, r.Stdout, "Example:")
	}
}

// A diff that fails leaves no file and harms none.
func TestFailedDiffLeavesNothing(t *testing.T) {
	e := harness.New(t).Tree("u", "a=1").Tree("out", "layer.tar=precious")
	require.NoError(t, unix.Lsetxattr(e.P("u/a"), "user.overlay.metacopy", nil, 0))
	for _, name := range []string{"layer.tar", "other.tar"} {
		r := e.Layerfs("diff", "--upper", e.P("u"), "-o", e.P("out", name))
		require.Equal(t, 7, r.Code, r.Stderr)
		require.Contains(t, r.Stderr, "/a: ")
	}
	require.Equal(t, []string{"layer.tar=precious"}, harness.Names(t, e.P("out")))
}

func TestNoSpace(t *testing.T) {
	harness.RequireRoot(t)
	e := harness.New(t)
	e.Sh("mkdir small; mount -t tmpfs -o size=1m tmpfs small")
	defer e.Sh("umount small")
	e.Sh("head -c 900000 /dev/urandom >u/a; head -c 900000 /dev/urandom >u/b")
	layer := diff(e, "layer.tar", "--upper", e.P("u"))
	r := e.Layerfs("apply", "--to", e.P("small"), layer)
	require.Equal(t, 5, r.Code, r.Stderr)
	require.Contains(t, r.Stderr, `entry "b"`)
	require.Equal(t, []string{"a"}, visible(t, e.P("small")))
	r = e.Layerfs("diff", "--upper", e.P("u"), "-o", e.P("small/out.tar"))
	require.Equal(t, 5, r.Code, r.Stderr)
	require.Equal(t, []string{"a"}, visible(t, e.P("small")))
}

// visible lists the names in dir that are no records.
func visible(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, d := range list {
		if !strings.HasPrefix(d.Name(), ".wh.") {
			names = append(names, d.Name())
		}
	}
	return names
}

// changes and diff tell the same.
func TestChangesAreTheEntries(t *testing.T) {
	e, m := told(t)
	layer := diff(e, "layer.tar", m.Point)
	low := read(t, e.P("l"))
	got := map[string]bool{"+ ": true}
	r := e.Layerfs("changes", "--json", m.Point)
	require.Zero(t, r.Code, r.Stderr)
	var list []struct{ Kind, Path string }
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &list))
	for _, c := range list {
		path := strings.TrimPrefix(c.Path, "/")
		_, existed := low[path]
		require.Equal(t, c.Kind != "A", existed, c.Path)
		if c.Kind == "D" {
			got["D "+path] = true
		} else {
			got["+ "+path] = true
		}
	}
	require.Equal(t, entries(t, layer, low), got)
}
