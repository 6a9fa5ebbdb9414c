package drivers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// entry is one entry of a tar.
type entry struct {
	Name, Data string
	Type       byte // 0: a file, or a directory when the name ends in a slash
	Link       string
}

// layer is one layer of an image that a test makes.
type layer []entry

// bytes is the layer as a tar.
func (l layer) bytes(s *store) []byte {
	s.T.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range l {
		h := &tar.Header{Name: e.Name, Mode: 0755, Size: int64(len(e.Data)), Typeflag: e.Type, Linkname: e.Link, ModTime: harness.SomeTime, Format: tar.FormatPAX}
		if e.Type == 0 {
			h.Typeflag = tar.TypeReg
			if e.Name[len(e.Name)-1] == '/' {
				h.Typeflag = tar.TypeDir
			}
		}
		require.NoError(s.T, w.WriteHeader(h))
		_, err := w.Write([]byte(e.Data))
		require.NoError(s.T, err)
	}
	require.NoError(s.T, w.Close())
	return b.Bytes()
}

func digest(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

func zipped(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(data)
	_ = w.Close()
	return b.Bytes()
}

// files writes a tar of files, in this order, and returns its path.
func (s *store) files(name string, list []entry) string {
	s.T.Helper()
	require.NoError(s.T, os.WriteFile(s.P(name), layer(list).bytes(s), 0644))
	return s.P(name)
}

type object map[string]any

func (s *store) json(v any) string {
	s.T.Helper()
	data, err := json.Marshal(v)
	require.NoError(s.T, err)
	return string(data)
}

// dockerArchive makes what `docker save` makes. tag "" is none.
func (s *store) dockerArchive(name, tag string, layers []layer) string {
	s.T.Helper()
	var ids, paths []string
	var list []entry
	for i, l := range layers {
		data := l.bytes(s)
		ids = append(ids, digest(data))
		paths = append(paths, fmt.Sprintf("%d/layer.tar", i))
		list = append(list, entry{Name: paths[i], Data: string(data)})
	}
	tags := []string{tag}
	if tag == "" {
		tags = nil
	}
	list = append(list,
		entry{Name: "config.json", Data: s.json(object{"rootfs": object{"type": "layers", "diff_ids": ids}, "created": time.Now()})},
		entry{Name: "manifest.json", Data: s.json([]object{{"Config": "config.json", "RepoTags": tags, "Layers": paths}})})
	return s.files(name, list)
}

// ociLayout makes a tar of an OCI image layout whose layers are compressed.
func (s *store) ociLayout(name, ref string, layers []layer) string {
	s.T.Helper()
	var list []entry
	blob := func(data string, more object) object {
		id := digest([]byte(data))
		list = append(list, entry{Name: "blobs/sha256/" + id[7:], Data: data})
		d := object{"digest": id, "size": len(data)}
		for k, v := range more {
			d[k] = v
		}
		return d
	}
	var ids []string
	var descriptors []object
	for _, l := range layers {
		data := l.bytes(s)
		ids = append(ids, digest(data))
		descriptors = append(descriptors, blob(string(zipped(data)), object{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}))
	}
	config := blob(s.json(object{"rootfs": object{"type": "layers", "diff_ids": ids}}), nil)
	manifest := blob(s.json(object{"config": config, "layers": descriptors}), object{
		"platform":    object{"os": "linux", "architecture": runtime.GOARCH},
		"annotations": object{"org.opencontainers.image.ref.name": ref},
	})
	foreign := object{"digest": digest(nil), "platform": object{"os": "plan9", "architecture": "mips"}}
	index := blob(s.json(object{"manifests": []object{foreign, manifest}}), nil)
	list = append(list,
		entry{Name: "oci-layout", Data: `{"imageLayoutVersion":"1.0.0"}`},
		entry{Name: "index.json", Data: s.json(object{"manifests": []object{index}})})
	return s.files(name, list)
}
