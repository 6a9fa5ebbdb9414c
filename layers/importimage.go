package layers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/layers/image"
)

// ImportImage makes layers of the images in an archive (docker save, OCI layout),
// and gives the topmost of each the image's names, those that are no names of a layer
// left out with a warning. name, when it is not "", is another one, for the only
// image. A name that a layer has already goes over to the new one. f is closed.
// progress is called for every layer that is unpacked, with what is being done and how
// many bytes that will read; it may return nil.
//
// Either all of an image comes into the store or nothing. Layers that the store has
// are shared.
func (s *Store) ImportImage(f *os.File, name string, progress func(what string, size int64) io.Writer) ([]*Layer, error) {
	a, err := image.Open(f, filepath.Join(s.root, "run"))
	if err != nil {
		return nil, err
	}
	defer a.Close()
	images, err := a.Images()
	if err != nil {
		return nil, err
	}
	switch {
	case len(images) == 0:
		return nil, errs.New(errs.NotFound, "has no image for this machine")
	case name != "" && len(images) > 1:
		return nil, errs.New(errs.Usage, "has %d images: --name is for one", len(images))
	}
	var made []*Layer
	for _, im := range images {
		names, err := s.namesOf(&im, name)
		if err != nil {
			return made, err
		}
		l, err := s.importOne(&imageImport{store: s, archive: a, image: im, chain: im.ChainIDs(), names: names, progress: progress})
		if err != nil {
			return made, err
		}
		made = append(made, l)
	}
	return made, nil
}

// namesOf returns the names that the image gets.
func (s *Store) namesOf(im *image.Image, more string) (names []string, err error) {
	if len(im.Layers) == 0 {
		return nil, errs.New(errs.Unsupported, "has an image without layers")
	}
	if more != "" {
		if err := checkLayerName(more); err != nil {
			return nil, err
		}
		names = append(names, more)
	}
	for _, n := range im.Names {
		switch {
		case !isLayerName(n):
			s.warn(fmt.Sprintf("the name %q of an image cannot be that of a layer, left out", n))
		case !slices.Contains(names, n):
			names = append(names, n)
		}
	}
	return names, nil
}

// imageImport is one image on its way into the store.
type imageImport struct {
	store    *Store
	archive  *image.Archive
	image    image.Image
	chain    []string // ids of the layers
	names    []string
	progress func(string, int64) io.Writer
	made     []*newLayer // so far, the lowest first; all of them become visible at once
}

func (s *Store) importOne(in *imageImport) (top *Layer, err error) {
	defer func() {
		for _, n := range slices.Backward(in.made) {
			if err != nil {
				s.discard(n)
			}
			n.lock.unlock()
		}
	}()
	for i := range in.chain {
		if err := in.layer(i); err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", i+1, len(in.chain), err)
		}
	}
	if len(in.made) > 0 {
		if err := s.sync(); err != nil {
			return nil, err
		}
	}
	return in.publish()
}

// layer makes the layer number i unless the store has it.
func (in *imageImport) layer(i int) error {
	n, err := in.begin(i)
	if n == nil || err != nil {
		return err
	}
	in.made = append(in.made, n)
	if err := in.store.driver.Create(n.tree); err != nil {
		return err
	}
	l := in.image.Layers[i]
	var progress io.Writer
	if in.progress != nil {
		progress = in.progress(fmt.Sprintf("layer %d/%d %s", i+1, len(in.chain), short(n.ID)), l.Size)
	}
	err = in.archive.Use(l, progress, func(tar io.Reader) error { return in.store.driver.Apply(n.tree, tar, in.store.warn) })
	if err != nil {
		return err
	}
	return in.store.measure(n)
}

// begin records that the layer number i is being made; nil when it is there. It waits
// for somebody else who is making it.
func (in *imageImport) begin(i int) (*newLayer, error) {
	s := in.store
	for {
		other, err := s.present(in.chain[i])
		if err != nil {
			return nil, err
		}
		if other == nil {
			l := &Layer{ID: in.chain[i], DiffID: in.image.Layers[i].DiffID}
			if i > 0 {
				l.Parent = in.chain[i-1]
			}
			n, err := s.beginLayer(l)
			if errors.Is(err, errTaken) {
				continue
			}
			return n, err
		}
		if other.State == ready {
			return nil, nil
		}
		lock, err := s.lockTreeFor(importTime, other.Tree, false, "layer "+other.title())
		if err != nil {
			return nil, err
		}
		lock.unlock()
		if err := s.recover(); err != nil {
			return nil, err
		}
	}
}

// present returns the record of a layer in whatever state, nil for none.
func (s *Store) present(id string) (*Layer, error) {
	var l Layer
	var found bool
	err := s.index.view(func(t txn) (err error) { found, err = t.get(layerBucket, []byte(id), &l); return err })
	if err != nil || !found {
		return nil, err
	}
	return &l, nil
}

// publish makes all layers of the image visible, with the image's names on the topmost.
func (in *imageImport) publish() (top *Layer, err error) {
	err = in.store.index.update(func(t txn) error {
		for _, n := range in.made {
			n.State = ready
			if err := t.putLayer(n.Layer); err != nil {
				return err
			}
		}
		for _, id := range in.chain { // shared ones may have been removed meanwhile
			if _, err := t.layerByID(id); err != nil {
				return errs.New(errs.Busy, "layer %s was removed by another layerfs command: repeat the import", short(id))
			}
		}
		if top, err = t.layerByID(in.chain[len(in.chain)-1]); err != nil {
			return err
		}
		return moveNames(t, in.names, top)
	})
	return top, err
}

// moveNames gives l the names, also those that other layers have.
func moveNames(t txn, names []string, l *Layer) error {
	for _, name := range names {
		var id string
		taken, err := t.get(nameBucket, []byte(name), &id)
		if err != nil {
			return err
		}
		if taken && id != l.ID {
			old, err := t.layerByID(id)
			if err != nil {
				return err
			}
			old.Names = slices.DeleteFunc(old.Names, func(n string) bool { return n == name })
			if err := t.putLayer(old); err != nil {
				return err
			}
		}
		if !slices.Contains(l.Names, name) {
			l.Names = append(l.Names, name)
		}
		if err := t.put(nameBucket, []byte(name), l.ID); err != nil {
			return err
		}
	}
	return t.putLayer(l)
}
