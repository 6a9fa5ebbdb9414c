package layers

import (
	"errors"
	"fmt"
)

// remnant is a tree that is being made or removed, by a command that may have died.
type remnant struct {
	bucket, key []byte
	Tree        string `json:"tree"`
	State       state  `json:"state"`
	what        string
}

// recover removes the trees whose commands have died.
func (s *Store) recover() error {
	list, err := s.remnants()
	if err != nil {
		return err
	}
	for _, r := range list {
		if err := s.bury(r); err != nil {
			return fmt.Errorf("%s, which a command that died has left: %w", r.what, err)
		}
	}
	return nil
}

// remnants lists what is being made or removed, nothing before what stands on it.
func (s *Store) remnants() (list []*remnant, err error) {
	var layers []*Layer
	err = s.index.view(func(t txn) error {
		return errors.Join(
			each(t, containerBucket, func(c *Container) error {
				if c.State != ready {
					list = append(list, &remnant{containerBucket, []byte(c.Name), c.Tree, c.State, "container " + c.Name})
				}
				return nil
			}),
			each(t, layerBucket, func(l *Layer) error {
				if l.State != ready {
					layers = append(layers, l)
				}
				return nil
			}))
	})
	for _, l := range topFirst(layers) {
		list = append(list, &remnant{layerBucket, []byte(l.ID), l.Tree, l.State, "layer " + l.title()})
	}
	return list, err
}

// bury removes a tree that nobody works on any more, and its record.
func (s *Store) bury(r *remnant) error {
	lock := s.abandoned(r.Tree)
	if lock == nil {
		return nil
	}
	defer lock.unlock()
	// It may have been completed, or removed by somebody else, before it was locked.
	var now remnant
	var still bool
	err := s.index.view(func(t txn) (err error) { still, err = t.get(r.bucket, r.key, &now); return err })
	if err != nil || !still || now.State == ready || now.Tree != r.Tree {
		return err
	}
	if err := s.driver.Remove(r.Tree); err != nil {
		return err
	}
	return s.index.update(func(t txn) error { return t.delete(r.bucket, r.key) })
}

// topFirst orders layers such that none comes before one that stands on it.
func topFirst(list []*Layer) []*Layer {
	parents := map[string]bool{}
	for _, l := range list {
		parents[l.Parent] = true
	}
	var top, rest []*Layer
	for _, l := range list {
		if parents[l.ID] {
			rest = append(rest, l)
		} else {
			top = append(top, l)
		}
	}
	if len(rest) == 0 || len(top) == 0 {
		return list
	}
	return append(top, topFirst(rest)...)
}
