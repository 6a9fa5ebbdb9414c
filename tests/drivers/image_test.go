package drivers

import (
	"archive/tar"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// layered are layers that delete, replace and hide what those below have.
var layered = []layer{
	{{Name: "a/"}, {Name: "a/1", Data: "1"}, {Name: "a/2", Data: "2"}, {Name: "b/"}, {Name: "b/x/"}, {Name: "b/x/y", Data: "y"}, {Name: "c", Data: "c"}, {Name: "d/"}, {Name: "d/e", Data: "e"}},
	{{Name: "a/.wh.1"}, {Name: "a/3", Data: "3"}, {Name: "b/.wh..wh..opq"}, {Name: "b/z", Data: "z"}, {Name: "c/"}, {Name: "c/in", Data: "in"}, {Name: ".wh.d"}},
	{{Name: "a/4", Data: "4"}, {Name: "link", Type: tar.TypeLink, Link: "a/4"}, {Name: "d", Data: "file"}, {Name: "c/.wh.in"}},
}

// merged is what a container of them shows.
var merged = []string{"a/", "a/2=2", "a/3=3", "a/4=4", "b/", "b/z=z", "c/", "d=file", "link=4"}

// TestImages: archives of both kinds, compressed or not, give the tree that the
// layers amount to, and layers that images share are there once.
func TestImages(t *testing.T) {
	each(t, func(s *store) {
		docker := s.dockerArchive("docker.tar", "one:latest", layered)
		oci := s.ociLayout("oci.tar", "registry.example/two:v1", append(append([]layer{}, layered[:2]...), layer{{Name: "e", Data: "e"}}))
		require.Equal(s.T, "one:latest", s.ok("layer", "import-image", docker))
		s.ok("container", "create", "--from", "one:latest", "c")
		m := s.ok("container", "mount", "c")
		require.Equal(s.T, merged, harness.Names(s.T, m))
		require.Equal(s.T, harness.Stat(s.T, m+"/link").Ino, harness.Stat(s.T, m+"/a/4").Ino, "a hard link")

		require.Equal(s.T, "registry.example/two:v1", s.ok("layer", "import-image", oci))
		require.Len(s.T, s.lines("layer", "ls"), 4, "two layers are shared")
		s.ok("container", "create", "--from", "registry.example/two:v1", "d")
		require.Equal(s.T, []string{"a/", "a/2=2", "a/3=3", "b/", "b/z=z", "c/", "c/in=in", "e=e"}, harness.Names(s.T, s.ok("container", "mount", "d")))

		s.Sh("gzip -k docker.tar")
		require.Equal(s.T, "one:latest\nagain:1", s.ok("layer", "import-image", "--name", "again:1", s.P("docker.tar.gz")), "a second name")
		require.Len(s.T, s.lines("layer", "ls"), 5, "one line for each name")
		s.ok("layer", "rm", "again:1")
		s.fails(4, "container c", "layer", "rm", "one:latest")
		s.ok("container", "rm", "-f", "c", "d")
		s.ok("layer", "rm", "one:latest")
		require.Len(s.T, s.lines("layer", "ls"), 3, "what the other image needs stays")
		s.ok("layer", "rm", "registry.example/two:v1")
		require.Empty(s.T, s.lines("layer", "ls"))
	})
}

// TestMovedName: an image that is imported again takes its name over.
func TestMovedName(t *testing.T) {
	s := newStore(t, place{driver: "vfs"})
	s.ok("layer", "import-image", s.dockerArchive("1.tar", "app:latest", layered[:1]))
	s.ok("layer", "import-image", s.dockerArchive("2.tar", "app:latest", layered[:2]))
	lines := s.lines("layer", "ls")
	require.Len(t, lines, 2)
	require.True(t, strings.HasPrefix(lines[0], "<none>"), lines[0])
	require.True(t, strings.HasPrefix(lines[1], "app:latest"), lines[1])
	id := field(lines[0], 1)
	s.ok("container", "create", "--from", id, "c")
	require.Contains(t, harness.Names(t, s.ok("container", "mount", "c")), "c=c")
}

// TestHostileImages: whatever is wrong with an archive is said, and nothing of it
// stays.
func TestHostileImages(t *testing.T) {
	s := newStore(t, place{driver: "vfs"})
	good := layered[0].bytes(s)
	config := func(ids ...string) string {
		return s.json(object{"rootfs": object{"diff_ids": ids}})
	}
	manifest := func(layers ...string) entry {
		return entry{Name: "manifest.json", Data: s.json([]object{{"Config": "config.json", "RepoTags": []string{"x:1"}, "Layers": layers}})}
	}
	content := entry{Name: "layer.tar", Data: string(good)}
	escape := layer{{Name: "../../outside", Data: "bad"}}.bytes(s)
	cases := []struct {
		name, message string
		list          []entry
	}{
		{"no image", "manifest.json", []entry{content}},
		{"no configuration", `no "config.json"`, []entry{content, manifest("layer.tar")}},
		{"not JSON", "not what it should be", []entry{content, {Name: "config.json", Data: "{"}, manifest("layer.tar")}},
		{"another digest", "is another one", []entry{content, {Name: "config.json", Data: config(digest([]byte("x")))}, manifest("layer.tar")}},
		{"a second layer that is another one", "layer 2 of 2", []entry{content, {Name: "two", Data: string(layered[1].bytes(s))}, {Name: "config.json", Data: config(digest(good), digest(good))}, manifest("layer.tar", "two")}},
		{"fewer layers", "knows 0", []entry{content, {Name: "config.json", Data: config()}, manifest("layer.tar")}},
		{"a strange digest", "sha256 and 64 digits", []entry{content, {Name: "config.json", Data: config("sha256:../../etc/passwd")}, manifest("layer.tar")}},
		{"a missing layer", `no "gone.tar"`, []entry{content, {Name: "config.json", Data: config(digest(good))}, manifest("gone.tar")}},
		{"links in a circle", "too many links", []entry{{Name: "p", Type: tar.TypeSymlink, Link: "q"}, {Name: "q", Type: tar.TypeSymlink, Link: "p"}, {Name: "config.json", Data: config(digest(good))}, manifest("p")}},
		{"a layer that leads out", "..", []entry{{Name: "layer.tar", Data: string(escape)}, {Name: "config.json", Data: config(digest(escape))}, manifest("layer.tar")}},
		{"a layer that is cut off", "end", []entry{{Name: "layer.tar", Data: string(good[:700])}, {Name: "config.json", Data: config(digest(good[:700]))}, manifest("layer.tar")}},
		{"no layers", "without layers", []entry{{Name: "config.json", Data: config()}, manifest()}},
		{"indexes in indexes", "without end", nested(s, 6)},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := s.run("layer", "import-image", s.files(fmt.Sprintf("%d.tar", i), c.list))
			require.Contains(t, []int{6, 7}, r.Code, r.Stderr)
			require.Contains(t, r.Stderr, c.message)
			require.Empty(t, s.lines("layer", "ls"))
		})
	}
	for name, data := range map[string]string{"empty": "", "text": "not a tar, but some text that is longer than that\n" + strings.Repeat("x", 600)} {
		require.NoError(t, os.WriteFile(s.P(name), []byte(data), 0644))
		s.fails(6, "", "layer", "import-image", s.P(name))
	}
	s.fails(3, "no such file", "layer", "import-image", s.P("absent.tar"))
	require.NoFileExists(t, s.P("outside"))
}

// nested are indexes that have another one in them, so many times.
func nested(s *store, depth int) []entry {
	index := s.json(object{"manifests": []object{{"digest": digest(nil)}}})
	var list []entry
	for range depth {
		list = append(list, entry{Name: "blobs/sha256/" + digest([]byte(index))[7:], Data: index})
		index = s.json(object{"manifests": []object{{"digest": digest([]byte(index))}}})
	}
	return append(list, entry{Name: "index.json", Data: index})
}
