package layers

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// file is everything that a layer can tell of one name.
type file struct {
	text  string   // all but the names
	names []string // of the same file, in order; one for a directory
	dir   bool
	nlink uint64
}

// read takes a tree in, "" being its root.
func read(t *testing.T, root string) map[string]file {
	t.Helper()
	type id struct{ dev, ino uint64 }
	files, links, ids := map[string]file{}, map[id][]string{}, map[string]id{}
	require.NoError(t, filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		require.NoError(t, err)
		if strings.HasPrefix(d.Name(), ".wh.") && p != root {
			return filepath.SkipDir // records of the branches
		}
		rel, st := strings.TrimPrefix(strings.TrimPrefix(p, root), "/"), harness.Stat(t, p)
		text := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			text += fmt.Sprintf(" %d %s", st.Size, harness.Sum(t, p))
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			require.NoError(t, err)
			text += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			text += fmt.Sprintf(" %x", st.Rdev)
		}
		for _, a := range harness.ListXattr(t, p) {
			if !strings.Contains(a, ".overlay.") && !strings.Contains(a, ".layerfs.") && a != "security.selinux" {
				text += fmt.Sprintf(" %s=%x", a, harness.GetXattr(t, p, a))
			}
		}
		f := file{text: text, dir: d.IsDir(), nlink: uint64(st.Nlink)}
		if !f.dir {
			ids[rel] = id{uint64(st.Dev), st.Ino}
			links[ids[rel]] = append(links[ids[rel]], rel)
		}
		files[rel] = f
		return nil
	}))
	for rel, i := range ids {
		f := files[rel]
		f.names = slices.Sorted(slices.Values(links[i]))
		files[rel] = f
	}
	return files
}

// described lists a tree for comparisons.
func described(files map[string]file) (list []string) {
	for rel, f := range files {
		line := rel + ": " + f.text
		if len(f.names) > 1 {
			line += " names " + strings.Join(f.names, ", ")
		}
		list = append(list, line)
	}
	slices.Sort(list)
	return list
}

// changed says whether now differs from was. A file that has lost names but is
// as it was otherwise does not.
func changed(was, now file) bool {
	return was.text != now.text || slices.ContainsFunc(now.names, func(n string) bool { return !slices.Contains(was.names, n) })
}

// entries are the paths in a layer, with "A" or "C" for what is there and
// "D" for what is gone: each name that an opaque mark stands for too.
func entries(t *testing.T, layer string, low map[string]file) map[string]bool {
	t.Helper()
	got := map[string]bool{}
	forEach(t, layer, func(h *tar.Header, _ io.Reader) {
		name := strings.Trim(path.Clean("/"+h.Name), "/")
		dir, base := path.Split(name)
		switch {
		case base == ".wh..wh..opq":
			for rel := range low {
				if d, b := path.Split(rel); d == dir && b != "" {
					got["D "+rel] = true
				}
			}
		case strings.HasPrefix(base, ".wh."):
			got["D "+dir+base[4:]] = true
		default:
			got["+ "+name] = true
		}
	})
	return got
}

// requireCanonical compares what is in a layer with the full comparison of two trees.
func requireCanonical(t *testing.T, layer string, low, merged map[string]file) {
	t.Helper()
	want, may := map[string]bool{}, map[string]bool{}
	parents := func(rel string) {
		for rel != "" {
			rel = strings.TrimSuffix(rel, path.Base(rel))
			rel = strings.TrimSuffix(rel, "/")
			want["+ "+rel] = true
		}
	}
	for rel, now := range merged {
		was, existed := low[rel]
		switch {
		case !existed || changed(was, now):
			want["+ "+rel] = true
			parents(rel)
		case !now.dir && was.nlink > uint64(len(now.names)):
			may["+ "+rel] = true // it has lost a name, and may have been copied up
		}
	}
	for rel := range low {
		parent := path.Dir("/" + rel)[1:]
		if _, there := merged[rel]; rel != "" && !there && merged[parent].dir {
			want["D "+rel] = true
			parents(rel)
		}
	}
	got := entries(t, layer, low)
	for e := range want {
		require.True(t, got[e], "%q is missing in the layer", e)
	}
	for e := range got {
		if want[e] || may[e] {
			continue
		}
		below := false // a directory in which something is that may be there
		for m := range may {
			below = below || got[m] && strings.HasPrefix(m, e+"/") || e == "+ " && got[m]
		}
		require.True(t, below, "%q is in the layer but has not changed", e)
	}
}

// forEach reads a layer.
func forEach(t *testing.T, layer string, fn func(h *tar.Header, content io.Reader)) {
	t.Helper()
	f, err := os.Open(layer)
	require.NoError(t, err)
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		require.NoError(t, err)
		fn(h, r)
	}
}

// lines describes the entries of a layer.
func lines(t *testing.T, layer string) (list []string) {
	t.Helper()
	forEach(t, layer, func(h *tar.Header, _ io.Reader) {
		list = append(list, fmt.Sprintf("%q %c %q %o %d:%d %v %d %v", h.Name, h.Typeflag, h.Linkname, h.Mode, h.Uid, h.Gid, h.ModTime.UTC(), h.Size, h.PAXRecords))
	})
	return list
}

// extract unpacks a layer over a copy of the tree below it, in the simplest
// way: layer.md and nothing else.
func extract(t *testing.T, layer, root string) {
	t.Helper()
	times := map[string]time.Time{} // of directories, for the end
	forEach(t, layer, func(h *tar.Header, content io.Reader) {
		p := filepath.Join(root, h.Name)
		dir, base := filepath.Split(p)
		switch {
		case base == ".wh..wh..opq":
			list, err := os.ReadDir(dir)
			require.NoError(t, err)
			for _, e := range list {
				require.NoError(t, os.RemoveAll(filepath.Join(dir, e.Name())))
			}
			return
		case strings.HasPrefix(base, ".wh."):
			gone := filepath.Join(dir, base[4:])
			_, err := os.Lstat(gone)
			require.NoError(t, err, "a whiteout of what is not there")
			require.NoError(t, os.RemoveAll(gone))
			return
		}
		fi, err := os.Lstat(p)
		if err == nil && (h.Typeflag != tar.TypeDir || !fi.IsDir()) {
			require.NoError(t, os.RemoveAll(p))
		}
		create(t, p, root, h, content)
		if h.Typeflag == tar.TypeLink {
			return
		}
		adorn(t, p, h)
		if h.Typeflag == tar.TypeDir {
			times[p] = h.ModTime
		}
	})
	for p, tm := range times {
		require.NoError(t, harness.SetTime(p, tm))
	}
}

func create(t *testing.T, p, root string, h *tar.Header, content io.Reader) {
	t.Helper()
	var err error
	switch h.Typeflag {
	case tar.TypeReg:
		var data []byte
		data, err = io.ReadAll(content)
		require.NoError(t, err)
		err = os.WriteFile(p, data, 0600)
	case tar.TypeDir:
		if err = os.Mkdir(p, 0700); os.IsExist(err) {
			err = nil
		}
	case tar.TypeSymlink:
		err = os.Symlink(h.Linkname, p)
	case tar.TypeLink:
		err = os.Link(filepath.Join(root, h.Linkname), p)
	case tar.TypeFifo:
		err = unix.Mknod(p, unix.S_IFIFO|0600, 0)
	case tar.TypeChar:
		err = unix.Mknod(p, unix.S_IFCHR|0600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	default:
		t.Fatalf("%s has type %c", h.Name, h.Typeflag)
	}
	require.NoError(t, err)
}

// adorn gives a file the attributes of its entry, and no other.
func adorn(t *testing.T, p string, h *tar.Header) {
	t.Helper()
	require.NoError(t, os.Lchown(p, h.Uid, h.Gid))
	for _, a := range harness.ListXattr(t, p) {
		if _, ok := h.PAXRecords["SCHILY.xattr."+a]; !ok && a != "security.selinux" {
			require.NoError(t, unix.Lremovexattr(p, a))
		}
	}
	for k, v := range h.PAXRecords {
		if a, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			require.NoError(t, unix.Lsetxattr(p, a, []byte(v), 0))
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		require.NoError(t, unix.Chmod(p, uint32(h.Mode)))
	}
	require.NoError(t, harness.SetTime(p, h.ModTime))
}
