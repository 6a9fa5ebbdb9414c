package layers

import (
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/oci"
)

// isLayerName says whether a layer may be called name. A regular expression that counts
// to 254 takes 2 ms to make, which every start of the program would pay.
func isLayerName(name string) bool { return isName(name, 255, "._/:@+-") }

func isContainerName(name string) bool { return isName(name, 128, "._-") }

// isName says whether name has letters, digits and others only, a letter or digit
// first, and not more than limit bytes.
func isName(name string, limit int, others string) bool {
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || strings.IndexByte(others, c) < 0) {
			return false
		}
	}
	return name != "" && len(name) <= limit
}

func checkLayerName(name string) error {
	if !isLayerName(name) {
		return errs.New(errs.Usage, "%q cannot be the name of a layer: letters, digits and ._/:@+- are possible, a letter or digit first, 255 in all", name)
	}
	return nil
}

// newLayer is a layer on its way into the store.
type newLayer struct {
	*Layer
	tree driver.Tree
	lock *treeLock
}

// errTaken says that a layer with this id is there or being made.
var errTaken = errors.New("the layer is there already")

// beginLayer records that l, which stands on parent, is being made. Its name must be free.
func (s *Store) beginLayer(l *Layer) (*newLayer, error) {
	l.Tree, l.State, l.Created = newTree(), making, time.Now().UTC()
	lock, err := s.lockTree(l.Tree, true, "layer "+l.title())
	if err != nil {
		return nil, err
	}
	n := &newLayer{Layer: l, lock: lock}
	err = s.index.update(func(t txn) error {
		var other Layer
		if taken, err := t.get(layerBucket, []byte(l.ID), &other); err != nil || taken {
			return errors.Join(errTaken, err)
		}
		for _, name := range l.Names {
			if err := nameIsFree(t, name); err != nil {
				return err
			}
		}
		below, err := t.below(l.Parent)
		if err != nil {
			return err
		}
		if len(below) >= maxDepth {
			return errs.New(errs.Unsupported, "%d layers on each other are the limit", maxDepth)
		}
		n.tree = driver.Tree{ID: l.Tree, Below: below}
		return t.putLayer(l)
	})
	if err != nil {
		lock.unlock()
		return nil, err
	}
	return n, nil
}

func nameIsFree(t txn, name string) error {
	var id string
	if taken, err := t.get(nameBucket, []byte(name), &id); err != nil || taken {
		if err == nil {
			err = errs.New(errs.Busy, "there is a layer %q already: remove it first, or take another name", name)
		}
		return err
	}
	return nil
}

// endLayer makes a layer whose tree is complete one of the store's, or, when making
// it has failed, removes what there is of it.
func (s *Store) endLayer(n *newLayer, failed error) error {
	defer n.lock.unlock()
	if failed == nil {
		failed = s.measure(n)
	}
	if failed == nil {
		failed = s.sync()
	}
	if failed == nil {
		n.State = ready
		failed = s.index.update(func(t txn) error { return publish(t, n.Layer) })
	}
	if failed != nil {
		s.discard(n)
	}
	return failed
}

func (s *Store) measure(n *newLayer) error {
	u, err := s.driver.Usage(n.tree)
	n.Size, n.Inodes = u.Bytes, u.Inodes
	return err
}

func publish(t txn, l *Layer) error {
	for _, name := range l.Names {
		if err := nameIsFree(t, name); err != nil {
			return err
		}
		if err := t.put(nameBucket, []byte(name), l.ID); err != nil {
			return err
		}
	}
	return t.putLayer(l)
}

// discard removes a layer that did not come about. What fails here is done by the
// next command.
func (s *Store) discard(n *newLayer) {
	if err := s.driver.Remove(n.tree.ID); err == nil {
		_ = s.index.update(func(t txn) error { return t.deleteTree(layerBucket, n.ID) })
	}
}

// ImportLayer makes a layer that stands on nothing of a tar, compressed or not.
func (s *Store) ImportLayer(name string, tar io.Reader) (*Layer, error) {
	if err := checkLayerName(name); err != nil {
		return nil, err
	}
	n, err := s.beginLayer(&Layer{ID: newID(), Names: []string{name}})
	if err != nil {
		return nil, err
	}
	err = s.driver.Create(n.tree)
	if err == nil {
		err = s.driver.Apply(n.tree, tar, s.warn)
	}
	return n.Layer, s.endLayer(n, err)
}

// Layers returns all layers, parents before what stands on them, else the oldest first.
func (s *Store) Layers() (list []*Layer, err error) {
	err = s.index.view(func(t txn) error {
		return each(t, layerBucket, func(l *Layer) error {
			if l.State == ready {
				list = append(list, l)
			}
			return nil
		})
	})
	slices.SortFunc(list, func(a, b *Layer) int { return a.Created.Compare(b.Created) })
	list = topFirst(list)
	slices.Reverse(list)
	return list, err
}

// useLayer calls use with the tree of a layer, which is not removed meanwhile.
func (s *Store) useLayer(ref string, use func(driver.Tree) error) error {
	var l *Layer
	var tree driver.Tree
	find := func(t txn) (err error) {
		if l, err = t.layer(ref); err != nil {
			return err
		}
		tree.ID = l.Tree
		tree.Below, err = t.below(l.Parent)
		return err
	}
	if err := s.index.view(find); err != nil {
		return err
	}
	lock, err := s.lockTree(l.Tree, false, "layer "+l.title())
	if err != nil {
		return err
	}
	defer lock.unlock()
	if err := s.index.view(find); err != nil { // removed before it was locked
		return err
	}
	return use(tree)
}

// DiffLayer writes what a layer changes in its parent as a layer tar.
func (s *Store) DiffLayer(ref string, out io.Writer) error {
	return s.useLayer(ref, func(t driver.Tree) error { return s.writeDiff(t, out) })
}

func (s *Store) writeDiff(t driver.Tree, out io.Writer) error {
	return s.driver.Compare(t, func(cmp branches.Comparison) error { return oci.Diff(out, cmp, s.warn) })
}
