// Package image reads the tars in which docker, podman, buildah and skopeo save
// images: docker-archive (manifest.json, as `docker save` writes it) and OCI image
// layouts (oci-layout and index.json).
//
// Nothing of such a tar is believed. Its entries are found by name and read in
// place, never unpacked; documents are bounded; layers and configurations are what
// their digests say or the image is refused. Names of images are only names.
package image

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/layers/oci"
)

const (
	maxDocument = 8 << 20 // bytes of a manifest or configuration
	maxEntries  = 100_000
	maxLinks    = 16 // symbolic links in a row: old versions of docker shared layers by them
	maxNesting  = 4  // of indexes in indexes
)

// Archive is an open image archive.
type Archive struct {
	f       *os.File
	entries map[string]entry
}

// entry is where the tar has a file, or what a symbolic link leads to.
type entry struct {
	off, size int64
	link      string
}

// Open reads the table of contents of the archive f. One that is compressed, or that
// cannot be read from everywhere, is first written to a file without a name in the
// directory spool. Close closes f as well.
func Open(f *os.File, spool string) (*Archive, error) {
	a := &Archive{f: f, entries: map[string]entry{}}
	if err := a.makeSeekable(spool); err != nil {
		f.Close()
		return nil, err
	}
	if err := a.scan(); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// Close closes the archive.
func (a *Archive) Close() { a.f.Close() }

func (a *Archive) makeSeekable(spool string) error {
	var head [4]byte
	n, err := a.f.ReadAt(head[:], 0)
	if err == nil && !compressed(head[:n]) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return errs.New(errs.Corrupt, "is too short for an image archive")
	}
	plain, done, err := oci.Decompress(a.f)
	if err != nil {
		return err
	}
	defer done()
	tmp, err := os.CreateTemp(spool, "image-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err := io.Copy(tmp, plain); err != nil {
		tmp.Close()
		return errs.New(classOfRead(err), "cannot be unpacked into %s: %w", spool, err)
	}
	a.f.Close()
	a.f = tmp
	_, err = tmp.Seek(0, io.SeekStart)
	return err
}

// classOfRead tells a damaged stream from a disk that is full.
func classOfRead(err error) errs.Class {
	if c := errs.Of(err); c != errs.Failed {
		return c
	}
	return errs.Corrupt
}

func compressed(head []byte) bool {
	return string(head) == "\x28\xb5\x2f\xfd" || len(head) > 1 && head[0] == 0x1f && head[1] == 0x8b
}

// scan notes where every file of the tar lies. The reader has no buffer of its
// own, so that after a header the file is at the data.
func (a *Archive) scan() error {
	r := tar.NewReader(a.f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return errs.New(errs.Corrupt, "is no tar, or a damaged one: %w", err)
		}
		if len(a.entries) >= maxEntries {
			return errs.New(errs.Corrupt, "has more than %d entries: that is no image", maxEntries)
		}
		name := path.Clean("/" + h.Name)[1:]
		switch h.Typeflag {
		case tar.TypeReg:
			off, err := a.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			a.entries[name] = entry{off: off, size: h.Size}
		case tar.TypeSymlink:
			a.entries[name] = entry{link: path.Clean("/" + path.Join(path.Dir(name), h.Linkname))[1:]}
		case tar.TypeLink:
			a.entries[name] = entry{link: path.Clean("/" + h.Linkname)[1:]}
		}
	}
}

// find returns the file called name.
func (a *Archive) find(name string) (entry, error) {
	at := path.Clean("/" + name)[1:]
	for range maxLinks {
		e, ok := a.entries[at]
		if !ok {
			return e, errs.New(errs.Corrupt, "has no %q", name)
		}
		if e.link == "" {
			return e, nil
		}
		at = e.link
	}
	return entry{}, errs.New(errs.Corrupt, "has too many links at %q", name)
}

func (a *Archive) has(name string) bool {
	_, ok := a.entries[name]
	return ok
}

func (a *Archive) open(e entry) *io.SectionReader { return io.NewSectionReader(a.f, e.off, e.size) }

// document decodes a JSON file and returns its bytes.
func (a *Archive) document(name string, into any) ([]byte, error) {
	e, err := a.find(name)
	if err != nil {
		return nil, err
	}
	if e.size > maxDocument {
		return nil, errs.New(errs.Corrupt, "has a %q of %d bytes: %d are possible", name, e.size, maxDocument)
	}
	data, err := io.ReadAll(a.open(e))
	if err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return nil, errs.New(errs.Corrupt, "has a %q that is not what it should be: %w", name, err)
	}
	return data, nil
}
