package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/layers"
)

// heldContainer is a container of the store in which a command runs.
type heldContainer struct {
	store *layers.Store
	name  string
	lock  *os.File
	own   bool // made for this run, without a name
}

// container makes or finds the container that is meant, and fills in what it
// consists of; nil when none is meant.
func (c *runCommand) container() (*heldContainer, error) {
	if c.From == "" && (c.runRequest.Name == "" || c.Lower != "") {
		return nil, nil
	}
	if c.From == "" && !layers.Exists(c.Store) {
		return nil, nil
	}
	store, err := c.open()
	if err != nil {
		return nil, err
	}
	h := &heldContainer{store: store, name: c.runRequest.Name}
	if c.From != "" {
		if h.own = h.name == ""; h.own {
			h.name = fmt.Sprintf("run-%d", os.Getpid())
		}
		if _, err := store.CreateContainer(h.name, c.From); err != nil {
			return nil, err
		}
	}
	src, lock, err := store.Use(h.name)
	switch {
	case c.From == "" && errs.Of(err) == errs.NotFound:
		return nil, nil
	case err != nil:
		return nil, errors.Join(err, h.release(false))
	}
	c.Source, h.lock = &src, lock
	return h, nil
}

// release lets the container go, and removes it when nobody wants it any more.
func (h *heldContainer) release(remove bool) error {
	var err error
	if h.lock != nil {
		h.lock.Close()
		err = h.store.Unuse(h.name)
	}
	if remove || h.own {
		err = errors.Join(err, h.store.RemoveContainer(h.name, false))
	}
	return err
}
