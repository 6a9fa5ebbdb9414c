package oci

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// someTime is the time of every entry.
var someTime = time.Unix(1e9, 5)

// entry makes a header from "name=content" (a file), "name/" (a directory),
// "name->target" (a symbolic link), "name=>target" (a hard link), "name%1:3" (a
// character device), "name|" (a fifo).
func entry(spec string) (*tar.Header, string) {
	h := &tar.Header{Format: tar.FormatPAX, Mode: 0644, ModTime: someTime, Uid: os.Getuid(), Gid: os.Getgid()}
	content := ""
	if name, target, ok := strings.Cut(spec, "->"); ok {
		h.Typeflag, h.Name, h.Linkname = tar.TypeSymlink, name, target
	} else if name, target, ok := strings.Cut(spec, "=>"); ok {
		h.Typeflag, h.Name, h.Linkname = tar.TypeLink, name, target
	} else if name, target, ok := strings.Cut(spec, "="); ok {
		h.Typeflag, h.Name, content = tar.TypeReg, name, target
		h.Size = int64(len(content))
	} else if name, dev, ok := strings.Cut(spec, "%"); ok {
		h.Typeflag, h.Name = tar.TypeChar, name
		_, _ = fmt.Sscanf(dev, "%d:%d", &h.Devmajor, &h.Devminor)
	} else if name, ok := strings.CutSuffix(spec, "|"); ok {
		h.Typeflag, h.Name = tar.TypeFifo, name
	} else if strings.HasSuffix(spec, "/") || spec == "." {
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, spec, 0755
	} else {
		panic(spec)
	}
	return h, content
}

// layer makes a tar of entries.
func layer(t testing.TB, specs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, s := range specs {
		h, content := entry(s)
		require.NoError(t, w.WriteHeader(h), s)
		_, err := w.Write([]byte(content))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// apply unpacks a layer in the aufs dialect, in which every record can be seen by its name.
func apply(t testing.TB, dir string, data []byte) (warnings []string, err error) {
	t.Helper()
	err = Apply(bytes.NewReader(data), dir, Options{Dialect: "aufs", Warn: func(s string) { warnings = append(warnings, s) }})
	return warnings, err
}

// names lists what is in dir, in the notation of entry; records of the format are left out.
func names(t testing.TB, dir string) (list []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		switch {
		case err != nil || rel == "." || strings.HasPrefix(rel, ".wh..wh.layerfs"):
			return err
		case d.IsDir():
			rel += "/"
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			require.NoError(t, err)
			rel += "->" + target
		case d.Type().IsRegular():
			data, err := os.ReadFile(p)
			require.NoError(t, err)
			rel += "=" + string(data)
		case d.Type()&fs.ModeNamedPipe != 0:
			rel += "|"
		}
		list = append(list, rel)
		return nil
	}))
	return list
}

func write(t testing.TB, dir string, specs ...string) {
	t.Helper()
	for _, s := range specs {
		h, content := entry(s)
		p := filepath.Join(dir, h.Name)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0755))
		switch h.Typeflag {
		case tar.TypeDir:
			require.NoError(t, os.MkdirAll(p, 0755))
		case tar.TypeSymlink:
			require.NoError(t, os.Symlink(h.Linkname, p))
		default:
			require.NoError(t, os.WriteFile(p, []byte(content), 0644))
		}
	}
}

// What layer.md says of each kind of entry.
func TestApply(t *testing.T) {
	for _, c := range []struct {
		rule  string
		was   []string // in the branch before
		layer []string
		want  []string
	}{
		{"additions are entries", nil, []string{"a=1", "d/", "d/b=2", "l->d", "p|"}, []string{"a=1", "d/", "d/b=2", "l->d", "p|"}},
		{"modified files are put in place of what was there", []string{"a=old"}, []string{"a=new"}, []string{"a=new"}},
		{"a name may begin with ./ or /", nil, []string{"./a=1", "/b=2", ".//c=3"}, []string{"a=1", "b=2", "c=3"}},
		{"a directory over a directory keeps what is in it", []string{"d/x=1"}, []string{"d/", "d/y=2"}, []string{"d/", "d/x=1", "d/y=2"}},
		{"anything else is unlinked and recreated: a file over a directory", []string{"d/x=1"}, []string{"d=2"}, []string{"d=2"}},
		{"a directory over a file, which hid what lowers have there", []string{"d=2"}, []string{"d/", "d/y=1"}, []string{"d/", "d/.wh..wh..opq=", "d/y=1"}},
		{"a directory over a symbolic link", []string{"e/", "d->e"}, []string{"d/", "d/y=1"}, []string{"d/", "d/.wh..wh..opq=", "d/y=1", "e/"}},
		{"a whiteout deletes", []string{"a=1", "d/b=1"}, []string{".wh.a=", "d/", "d/.wh.b="}, []string{".wh.a=", "d/", "d/.wh.b="}},
		{"a whiteout deletes a directory", []string{"d/b/c=1"}, []string{".wh.d="}, []string{".wh.d="}},
		{"a whiteout is for lower layers only: after its entry", nil, []string{"a=1", ".wh.a="}, []string{"a=1"}},
		{"and before it", []string{"a=0"}, []string{".wh.a=", "a=1"}, []string{"a=1"}},
		{"a whiteout before a directory makes it opaque", []string{"d/old=1"}, []string{".wh.d=", "d/", "d/new=1"}, []string{"d/", "d/.wh..wh..opq=", "d/new=1"}},
		{"and behind it", []string{"d/old=1"}, []string{"d/", "d/new=1", ".wh.d="}, []string{"d/", "d/.wh..wh..opq=", "d/new=1"}},
		{"an opaque whiteout hides all siblings of lower layers", []string{"d/a=1", "d/s/b=1"}, []string{"d/", "d/.wh..wh..opq=", "d/n=2"}, []string{"d/", "d/.wh..wh..opq=", "d/n=2"}},
		{"whatever its order", []string{"d/a=1", "d/s/b=1"}, []string{"d/", "d/n=2", "d/s/", "d/s/c=3", "d/.wh..wh..opq="}, []string{"d/", "d/.wh..wh..opq=", "d/n=2", "d/s/", "d/s/c=3"}},
		{"in the root too", []string{"a=1"}, []string{"b=1", ".wh..wh..opq="}, []string{".wh..wh..opq=", "b=1"}},
		{"a whiteout beside an opaque one adds nothing", nil, []string{"d/", "d/.wh..wh..opq=", "d/.wh.a="}, []string{"d/", "d/.wh..wh..opq="}},
		{"a later layer fills what an earlier one deleted", []string{".wh.d="}, []string{"d/", "d/a=1"}, []string{"d/", "d/.wh..wh..opq=", "d/a=1"}},
		{"with a file", []string{".wh.a="}, []string{"a=1"}, []string{"a=1"}},
		{"other names of AUFS are skipped", nil, []string{".wh..wh.aufs=", ".wh..wh.orph/", ".wh..wh.orph/x=1", "a=1"}, []string{"a=1"}},
		{"but its pseudo-links resolved", nil, []string{".wh..wh.plnk/", ".wh..wh.plnk/12.34=x", "a=>.wh..wh.plnk/12.34", "b=>.wh..wh.plnk/12.34"}, []string{"a=x", "b=x"}},
		{"a hard link is a name of an earlier entry", nil, []string{"d/", "d/a=1", "b=>./d/a"}, []string{"b=1", "d/", "d/a=1"}},
		{"a hard link to itself", nil, []string{"a=1", "a=>a"}, []string{"a=1"}},
		{"a hard link to a symbolic link is one too", nil, []string{"l->/etc/passwd", "m=>l"}, []string{"l->/etc/passwd", "m->/etc/passwd"}},
		{"the target of a symbolic link is verbatim", nil, []string{"l->../../../x/./y/"}, []string{"l->../../../x/./y/"}},
		{"the same path twice: the last one", nil, []string{"a=1", "a=2", "b=1", "b/", "b/c=1", "d/", "d/e=1", "d=5"}, []string{"a=2", "b/", "b/c=1", "d=5"}},
		{"parents that are missing are made", nil, []string{"x/y/z=1", "x/y/.wh.gone="}, []string{"x/", "x/y/", "x/y/.wh.gone=", "x/y/z=1"}},
		{"a parent that is no directory in the branch makes way", []string{"e/", "d->e"}, []string{"d/y=1"}, []string{"d/", "d/.wh..wh..opq=", "d/y=1", "e/"}},
		{"overlay's whiteout device is a whiteout", []string{"a=1"}, []string{"a%0:0"}, []string{".wh.a="}},
		{"the root's entry", nil, []string{"./", "a=1"}, []string{"a=1"}},
		{"and without its slash", nil, []string{".", "a=1"}, []string{"a=1"}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, c.was...)
			warnings, err := apply(t, dir, layer(t, c.layer...))
			require.NoError(t, err)
			require.Empty(t, warnings)
			require.Equal(t, c.want, names(t, dir))
		})
	}
}

// What attackers have tried elsewhere (reliability.md, 4.2), and what is damaged.
func TestRefused(t *testing.T) {
	long := strings.Repeat("n", 256)
	for _, c := range []struct {
		name  string
		layer []string
		says  string
	}{
		{"climbing", []string{"../x=1"}, ".."},
		{"climbing inside", []string{"a/", "a/../../x=1"}, ".."},
		{"through a symbolic link (CVE-2021-30465)", []string{"l->../out", "l/x=1"}, `"l", on the way to it`},
		{"through an absolute one", []string{"l->/", "l/x=1"}, `"l", on the way to it`},
		{"a directory through one", []string{"l->../out", "l/d/"}, `"l", on the way to it`},
		{"a whiteout through one", []string{"l->../out", "l/.wh.keep="}, `"l", on the way to it`},
		{"an opaque one", []string{"l->../out", "l/.wh..wh..opq="}, `"l", on the way to it`},
		{"through a file", []string{"f=1", "f/x=1"}, `"f", on the way to it`},
		{"a hard link through a symbolic link", []string{"l->../out", "h=>l/keep"}, "which is not there"},
		{"a hard link that climbs", []string{"h=>../out/keep"}, ".."},
		{"a hard link to nothing", []string{"h=>nothing"}, "which is not there"},
		{"a hard link to a directory", []string{"d/", "h=>d"}, "which is not there"},
		{"a hard link to the root", []string{"h=>."}, "which is not there"},
		{"a hard link to a whiteout", []string{".wh.a=", "h=>.wh.a"}, "which is not there"},
		{"a hard link to a pseudo-link that is not there", []string{"h=>.wh..wh.plnk/1.2"}, "which is not there"},
		{"the root a symbolic link (CVE-2021-29136)", []string{".->/etc"}, "the root"},
		{"the root a file", []string{".=1"}, "the root"},
		{"the root a hard link", []string{"a=1", ".=>a"}, "the root"},
		{"a whiteout of nothing", []string{".wh.="}, "whiteout"},
		{"a whiteout of the directory itself", []string{"d/.wh..="}, "whiteout"},
		{"a whiteout of its parent", []string{"d/.wh...="}, "whiteout"},
		{"something in a whiteout", []string{".wh.a/", ".wh.a/b=1"}, "in the whiteout"},
		{"a name that is too long", []string{long + "=1"}, "256 bytes"},
		{"a path that is too long", []string{strings.Repeat("d/", 2100) + "x=1"}, "4201 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			top := t.TempDir()
			write(t, top, "out/keep=1", "in/")
			_, err := apply(t, filepath.Join(top, "in"), layer(t, c.layer...))
			require.ErrorContains(t, err, c.says)
			require.Equal(t, errs.Corrupt, errs.Of(err))
			require.Equal(t, []string{"out/", "out/keep=1"}, names(t, top)[len(names(t, top))-2:], "nothing outside has changed")
			require.NoDirExists(t, filepath.Join(top, "in", stageDir))
		})
	}
}

// withHeader is a layer of one entry whose header was changed.
func withHeader(t *testing.T, spec string, change func(*tar.Header)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h, content := entry(spec)
	change(h)
	require.NoError(t, w.WriteHeader(h))
	_, _ = w.Write([]byte(content))
	_ = w.Flush()
	return append(b.Bytes(), make([]byte, 1024)...)
}

// endless cuts the end mark off.
func endless(data []byte) []byte { return data[:len(data)-1024] }

func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		data  []byte
		class errs.Class
		says  string
	}{
		"more than the disk has": {withHeader(t, "a=1", func(h *tar.Header) { h.Size = 1 << 60 }), errs.NoSpace, "are free"},
		"less than it says":      {withHeader(t, "a=1", func(h *tar.Header) { h.Size = 5000 }), errs.Corrupt, "cut off"},
		"an attribute that is too large": {withHeader(t, "a=", func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": strings.Repeat("v", 65537)}
		}), errs.Corrupt, "65536"},
		"an attribute whose name is too long": {withHeader(t, "a=", func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user." + strings.Repeat("n", 255): "v"}
		}), errs.Corrupt, "260 bytes"},
		"an owner that cannot be": {withHeader(t, "a=", func(h *tar.Header) { h.Uid = 1<<32 - 1 }), errs.Corrupt, "owner"},
		"no tar":                  {[]byte(strings.Repeat("hello ", 200)), errs.Corrupt, "no tar"},
		"nothing":                 {nil, errs.Corrupt, "empty"},
		"without its end":         {endless(layer(t, "a=1")), errs.Corrupt, "no end mark"},
		"bzip2":                   {[]byte("BZh91AY&SY"), errs.Unsupported, "bzip2"},
		"half a gzip":             {[]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"), errs.Corrupt, "cut off"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := apply(t, dir, c.data)
			require.ErrorContains(t, err, c.says)
			require.Equal(t, c.class, errs.Of(err))
			if name != "without its end" {
				require.NoFileExists(t, filepath.Join(dir, "a"), "no half file under its name")
			}
			require.NoDirExists(t, filepath.Join(dir, stageDir))
		})
	}
}

// A sparse entry takes the space of its data, and the time of its size only so far.
func TestSparse(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("tar is not installed")
	}
	src := t.TempDir()
	write(t, src, "s=start")
	for _, format := range []string{"pax", "gnu"} {
		dir := t.TempDir()
		require.NoError(t, os.Truncate(filepath.Join(src, "s"), 1<<30))
		data, err := exec.Command("tar", "-C", src, "-S", "--format="+format, "-c", "s").Output()
		require.NoError(t, err)
		_, err = apply(t, dir, data)
		require.NoError(t, err)
		var st unix.Stat_t
		require.NoError(t, unix.Stat(filepath.Join(dir, "s"), &st))
		require.EqualValues(t, 1<<30, st.Size)
		require.Less(t, st.Blocks, int64(100), "holes are holes")

		require.NoError(t, os.Truncate(filepath.Join(src, "s"), 1<<41))
		data, err = exec.Command("tar", "-C", src, "-S", "--format="+format, "-c", "s").Output()
		require.NoError(t, err)
		_, err = apply(t, dir, data)
		require.Equal(t, errs.Unsupported, errs.Of(err), "%v", err)
	}
}

func TestAttributes(t *testing.T) {
	dir := t.TempDir()
	data := withHeader(t, "d/", func(h *tar.Header) {
		h.Mode = 0510
		h.PAXRecords = map[string]string{
			"SCHILY.xattr.user.mime": "text", "SCHILY.xattr.user.a%3Db%25": "v",
			"SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.layerfs.format": "x", "SCHILY.xattr.security.selinux": "l",
		}
	})
	require.NoError(t, os.Mkdir(filepath.Join(dir, "d"), 0700))
	require.NoError(t, unix.Lsetxattr(filepath.Join(dir, "d"), "user.old", []byte("x"), 0))
	_, err := apply(t, dir, data)
	require.NoError(t, err)
	d := filepath.Join(dir, "d")
	fi, err := os.Stat(d)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0510), fi.Mode().Perm())
	require.True(t, someTime.Equal(fi.ModTime()), "to the nanosecond")
	buf := make([]byte, 1000)
	n, err := unix.Llistxattr(d, buf)
	require.NoError(t, err)
	var got []string
	for _, a := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(a, "user.") {
			got = append(got, a)
		}
	}
	require.ElementsMatch(t, []string{"user.mime", "user.a=b%"}, got, "replaced, unions' own dropped")
}

// Directories that only lie on the way stay as they are.
func TestDirectoriesOnTheWayKeepTheirTimes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "d/e/old=1")
	for _, p := range []string{"d/e", "d", "."} {
		require.NoError(t, os.Chtimes(filepath.Join(dir, p), someTime, someTime))
	}
	_, err := apply(t, dir, layer(t, "d/e/new=1"))
	require.NoError(t, err)
	for _, p := range []string{"d/e", "d", "."} {
		fi, err := os.Stat(filepath.Join(dir, p))
		require.NoError(t, err)
		require.True(t, someTime.Equal(fi.ModTime()), p)
	}
}

func TestZerosBecomeHoles(t *testing.T) {
	dir := t.TempDir()
	content := "start" + strings.Repeat("\x00", 3<<20) + "end"
	_, err := apply(t, dir, layer(t, "f="+content, "z="+strings.Repeat("\x00", 1<<20)))
	require.NoError(t, err)
	got, err := os.ReadFile(filepath.Join(dir, "f"))
	require.NoError(t, err)
	require.True(t, string(got) == content)
	for name, most := range map[string]int64{"f": 64, "z": 0} {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(filepath.Join(dir, name), &st))
		require.LessOrEqual(t, st.Blocks, most, name)
	}
}

// What an ordinary user cannot do is left out and told, one line each.
func TestWithoutPrivileges(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("for an ordinary user")
	}
	dir := t.TempDir()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, s := range []string{"dev%1:3", "link=>dev", "suid=1"} {
		h, content := entry(s)
		h.Uid, h.Gid, h.Mode = 0, 0, 04755
		require.NoError(t, w.WriteHeader(h))
		_, _ = w.Write([]byte(content))
	}
	require.NoError(t, w.Close())
	warnings, err := apply(t, dir, b.Bytes())
	require.NoError(t, err)
	require.Len(t, warnings, 3)
	require.Contains(t, warnings[0], "dev: device left out")
	require.Contains(t, warnings[1], "link: hard link left out")
	require.Contains(t, warnings[2], "cannot give files away")
	fi, err := os.Stat(filepath.Join(dir, "suid"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0755), fi.Mode(), "set-user-id is for the owner that it did not get")
}

// statText is all that is known of a file but its access time.
func statText(st *unix.Stat_t) string { return fmt.Sprintf("%+v\n", *st) }
