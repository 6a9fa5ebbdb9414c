package layers

import (
	"fmt"
	"slices"

	"github.com/layerfs/layerfs/internal/errs"
)

// RemoveLayer takes a name from a layer. The layer goes with its last name, and with
// it those below that have no name and nothing else on them. A layer that something
// stands on is refused.
func (s *Store) RemoveLayer(ref string) error {
	var l *Layer
	find := func(t txn) (err error) { l, err = t.layer(ref); return err }
	if err := s.index.view(find); err != nil {
		return err
	}
	lock, err := s.lockTree(l.Tree, true, "layer "+l.title())
	if err != nil {
		return err
	}
	defer lock.unlock()
	var doomed []*Layer
	err = s.index.update(func(t txn) (err error) {
		doomed, err = beginRemoval(t, ref)
		return err
	})
	if err != nil {
		return err
	}
	for i, d := range doomed {
		if err := s.removeTree(d, i == 0); err != nil {
			return fmt.Errorf("layer %s: %w", d.title(), err)
		}
	}
	return nil
}

// removeTree completes a removal that is recorded. locked is whether the caller has
// the layer's lock.
func (s *Store) removeTree(l *Layer, locked bool) error {
	if !locked {
		lock, err := s.lockTree(l.Tree, true, "layer "+l.title())
		if err != nil {
			return err
		}
		defer lock.unlock()
	}
	if err := s.driver.Remove(l.Tree); err != nil {
		return err
	}
	return s.index.update(func(t txn) error {
		var now Layer
		if found, err := t.get(layerBucket, []byte(l.ID), &now); !found || err != nil || now.Tree != l.Tree {
			return err // another command has completed it
		}
		return t.deleteTree(layerBucket, l.ID)
	})
}

// beginRemoval takes the name ref from its layer, and records the removal of what goes
// with it: all at once, so that a crash leaves nothing that would not go.
func beginRemoval(t txn, ref string) (doomed []*Layer, err error) {
	l, err := t.layer(ref)
	if err != nil {
		return nil, err
	}
	others := slices.DeleteFunc(slices.Clone(l.Names), func(n string) bool { return n == ref })
	if len(others) > 0 && len(others) < len(l.Names) {
		l.Names = others
		if err := t.delete(nameBucket, []byte(ref)); err != nil {
			return nil, err
		}
		return nil, t.putLayer(l)
	}
	what, err := t.dependent(l.ID, "")
	if err == nil && what != "" {
		err = errs.New(errs.Busy, "layer %s is in use: %s stands on it", ref, what)
	}
	for above := ""; err == nil && l != nil; {
		doomed = append(doomed, l)
		if err = t.doom(l); err != nil {
			break
		}
		above = l.ID
		l, err = t.orphan(l.Parent, above)
	}
	return doomed, err
}

// doom records that a layer is being removed.
func (t txn) doom(l *Layer) error {
	for _, name := range l.Names {
		if err := t.delete(nameBucket, []byte(name)); err != nil {
			return err
		}
	}
	l.Names, l.State = nil, removing
	return t.putLayer(l)
}

// orphan returns the layer id if it is to go with the layer above: it has no name and
// nothing else stands on it.
func (t txn) orphan(id, above string) (*Layer, error) {
	if id == "" {
		return nil, nil
	}
	l, err := t.layerByID(id)
	if err != nil || len(l.Names) > 0 {
		return nil, err
	}
	if what, err := t.dependent(id, above); err != nil || what != "" {
		return nil, err
	}
	return l, nil
}
