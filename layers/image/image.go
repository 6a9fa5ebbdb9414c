package image

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"runtime"
	"slices"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/layers/oci"
)

// Image is one image of an archive.
type Image struct {
	Names  []string // such as "busybox:latest"
	Layers []Layer  // the lowest first
}

// Layer is one layer of an image.
type Layer struct {
	DiffID string // the digest of the tar, "sha256:…"
	Size   int64  // bytes in the archive, compressed as they are
	at     entry
}

// Images returns what is in the archive.
func (a *Archive) Images() ([]Image, error) {
	switch {
	case a.has("manifest.json"):
		return a.dockerImages()
	case a.has("index.json"):
		return a.ociImages()
	}
	return nil, errs.New(errs.Corrupt, "is no image: it has neither manifest.json (docker save) nor index.json (OCI layout); a root file system is imported by `layerfs layer import`")
}

// configuration is what matters here of an image's configuration.
type configuration struct {
	RootFS struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// image puts an image together: the configuration says what the layers are that
// the entries have.
func (a *Archive) image(names []string, config configuration, entries []entry) (Image, error) {
	im := Image{Names: names}
	if len(config.RootFS.DiffIDs) != len(entries) {
		return im, errs.New(errs.Corrupt, "has an image with %d layers whose configuration knows %d", len(entries), len(config.RootFS.DiffIDs))
	}
	for i, id := range config.RootFS.DiffIDs {
		if _, err := digest(id); err != nil {
			return im, err
		}
		im.Layers = append(im.Layers, Layer{DiffID: id, Size: entries[i].size, at: entries[i]})
	}
	return im, nil
}

func (a *Archive) dockerImages() ([]Image, error) {
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if _, err := a.document("manifest.json", &manifest); err != nil {
		return nil, err
	}
	var images []Image
	for _, m := range manifest {
		var config configuration
		if _, err := a.document(m.Config, &config); err != nil {
			return nil, err
		}
		var entries []entry
		for _, name := range m.Layers {
			e, err := a.find(name)
			if err != nil {
				return nil, err
			}
			entries = append(entries, e)
		}
		im, err := a.image(m.RepoTags, config, entries)
		if err != nil {
			return nil, err
		}
		images = append(images, im)
	}
	return images, nil
}

// descriptor is OCI's reference to a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Annotations map[string]string `json:"annotations"`
	Platform    *struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	} `json:"platform"`
}

// document is an OCI index or manifest, whichever it turns out to be.
type document struct {
	Manifests []descriptor `json:"manifests"`
	Config    descriptor   `json:"config"`
	Layers    []descriptor `json:"layers"`
}

func (a *Archive) ociImages() ([]Image, error) {
	var index document
	if _, err := a.document("index.json", &index); err != nil {
		return nil, err
	}
	return a.manifests(index.Manifests, nil, maxNesting)
}

// manifests returns the images of an index. Those for other machines are left out,
// and what is no image (signatures, attestations) is.
func (a *Archive) manifests(list []descriptor, names []string, nesting int) ([]Image, error) {
	if nesting == 0 {
		return nil, errs.New(errs.Corrupt, "has indexes in indexes without end")
	}
	var images []Image
	for _, d := range list {
		if p := d.Platform; p != nil && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
			continue
		}
		var m document
		if err := a.blob(d.Digest, &m); err != nil {
			return nil, err
		}
		called := names
		if n := nameOf(d); n != "" {
			called = []string{n}
		}
		if len(m.Manifests) > 0 {
			more, err := a.manifests(m.Manifests, called, nesting-1)
			if err != nil {
				return nil, err
			}
			images = append(images, more...)
			continue
		}
		im, err := a.manifest(&m, called)
		if err != nil {
			return nil, err
		}
		images = append(images, im)
	}
	return images, nil
}

// nameOf returns what a manifest is called. containerd gives the whole reference,
// others a tag or a reference.
func nameOf(d descriptor) string {
	if n := d.Annotations["io.containerd.image.name"]; n != "" {
		return n
	}
	return d.Annotations["org.opencontainers.image.ref.name"]
}

func (a *Archive) manifest(m *document, names []string) (Image, error) {
	var config configuration
	if err := a.blob(m.Config.Digest, &config); err != nil {
		return Image{}, err
	}
	var entries []entry
	for _, d := range m.Layers {
		hex, err := digest(d.Digest)
		if err != nil {
			return Image{}, err
		}
		e, err := a.find("blobs/sha256/" + hex)
		if err != nil {
			return Image{}, err
		}
		entries = append(entries, e)
	}
	return a.image(names, config, entries)
}

// blob decodes the JSON document with the given digest.
func (a *Archive) blob(id string, into any) error {
	want, err := digest(id)
	if err != nil {
		return err
	}
	data, err := a.document("blobs/sha256/"+want, into)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != want {
		return errs.New(errs.Corrupt, "has a document that is not what its digest %s says", id)
	}
	return nil
}

// digest returns the digits of a digest.
func digest(id string) (string, error) {
	digits, ok := strings.CutPrefix(id, "sha256:")
	if !ok || len(digits) != 2*sha256.Size || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", errs.New(errs.Corrupt, "has the digest %q: sha256 and 64 digits are expected", id)
	}
	return digits, nil
}

// ChainIDs returns for each layer the id of it and all below, without "sha256:":
// the DiffID of the first, then the digest of the one before and the DiffID
// (image-spec, config.md, Layer ChainID).
func (im *Image) ChainIDs() []string {
	var chain []string
	for i, l := range im.Layers {
		if i == 0 {
			chain = append(chain, strings.TrimPrefix(l.DiffID, "sha256:"))
			continue
		}
		sum := sha256.Sum256([]byte("sha256:" + chain[i-1] + " " + l.DiffID))
		chain = append(chain, hex.EncodeToString(sum[:]))
	}
	return slices.Clip(chain)
}

// Use calls use with the tar of a layer, uncompressed, and checks that it is what
// the configuration says. progress, when it is not nil, is told of every byte read
// from the archive.
func (a *Archive) Use(l Layer, progress io.Writer, use func(io.Reader) error) error {
	var raw io.Reader = a.open(l.at)
	if progress != nil {
		raw = io.TeeReader(raw, progress)
	}
	plain, done, err := oci.Decompress(raw)
	if err != nil {
		return err
	}
	defer done()
	v := &verifier{r: plain, sum: sha256.New()}
	if err := use(v); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, v); err != nil {
		return errs.New(errs.Corrupt, "layer %s: %w", l.DiffID, err)
	}
	if got := "sha256:" + hex.EncodeToString(v.sum.Sum(nil)); got != l.DiffID {
		return errs.New(errs.Corrupt, "layer %s is another one: it has the digest %s", l.DiffID, got)
	}
	return nil
}

// verifier adds up what is read through it.
type verifier struct {
	r   io.Reader
	sum hash.Hash
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.sum.Write(p[:n])
	if err != nil && err != io.EOF {
		err = fmt.Errorf("reading the layer: %w", err)
	}
	return n, err
}
