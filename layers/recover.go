package layers

import (
	"bytes"
	"errors"
	"fmt"
)

// remnant is a tree that is being made or removed, by a command that may have died.
type remnant struct {
	bucket []byte
	key    string
	Tree   string `json:"tree"`
	State  state  `json:"state"`
	what   string
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
		return t.unfinished(func(bucket, key []byte) error {
			if bytes.Equal(bucket, containerBucket) {
				var c Container
				_, err := t.get(bucket, key, &c)
				list = append(list, &remnant{bucket, c.Name, c.Tree, c.State, "container " + c.Name})
				return err
			}
			var l Layer
			_, err := t.get(bucket, key, &l)
			layers = append(layers, &l)
			return err
		})
	})
	for _, l := range topFirst(layers) {
		list = append(list, &remnant{layerBucket, l.ID, l.Tree, l.State, "layer " + l.title()})
	}
	return list, err
}

// upgrade gives an index of version 1 the list of what is unfinished.
func (s *Store) upgrade() error {
	return s.index.update(func(t txn) error {
		if _, err := t.tx.CreateBucketIfNotExists(unfinishedBucket); err != nil {
			return err
		}
		err := errors.Join(
			each(t, containerBucket, func(c *Container) error { return t.mark(containerBucket, []byte(c.Name), c.State) }),
			each(t, layerBucket, func(l *Layer) error { return t.mark(layerBucket, []byte(l.ID), l.State) }))
		if err != nil {
			return err
		}
		if _, err := t.get(metaBucket, metaKey, &s.meta); err != nil { // somebody else may have been here
			return err
		}
		s.meta.Version = formatVersion
		return t.put(metaBucket, metaKey, s.meta)
	})
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
	err := s.index.view(func(t txn) (err error) { still, err = t.get(r.bucket, []byte(r.key), &now); return err })
	if err != nil || !still || now.State == ready || now.Tree != r.Tree {
		return err
	}
	if err := s.driver.Remove(r.Tree); err != nil {
		return err
	}
	return s.index.update(func(t txn) error { return t.deleteTree(r.bucket, r.key) })
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
