package layers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/mounts"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
)

// CreateContainer makes a container that stands on a layer, or on nothing when from is "".
// size is how large it may become, in bytes, 0 for what is usual.
func (s *Store) CreateContainer(name, from string, size int64) (*Container, error) {
	if !isContainerName(name) {
		return nil, errs.New(errs.Usage, "%q cannot be the name of a container: letters, digits and ._- are possible, a letter or digit first, 128 in all", name)
	}
	c := &Container{Name: name, Tree: newTree(), State: making, Created: time.Now().UTC()}
	lock, err := s.lockTree(c.Tree, true, "container "+name)
	if err != nil {
		return nil, err
	}
	defer lock.unlock()
	tree := driver.Tree{ID: c.Tree}
	err = s.index.update(func(t txn) error {
		if err := s.placeContainer(t, c, from); err != nil {
			return err
		}
		tree.Below, err = t.below(c.Layer)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = s.createTree(tree, size)
	if err == nil {
		c.State = ready
		err = s.index.update(func(t txn) error { return t.putContainer(c) })
	}
	if err != nil && s.driver.Remove(c.Tree) == nil {
		_ = s.index.update(func(t txn) error { return t.deleteTree(containerBucket, name) })
	}
	return c, err
}

func (s *Store) createTree(t driver.Tree, size int64) error {
	if size == 0 {
		return s.driver.Create(t)
	}
	d, ok := s.driver.(driver.Sized)
	if !ok {
		return errs.New(errs.Unsupported, "driver %s cannot limit the size of a container: devicemapper and thin can", s.meta.Driver)
	}
	return d.CreateSized(t, size)
}

// placeContainer records a container that is being made.
func (s *Store) placeContainer(t txn, c *Container, from string) error {
	var other Container
	taken, err := t.get(containerBucket, []byte(c.Name), &other)
	switch {
	case err != nil:
		return err
	case taken && other.State != ready:
		return errs.New(errs.Busy, "container %s is just being made or removed by another layerfs command", c.Name)
	case taken:
		return errs.New(errs.Busy, "there is a container %q already: remove it first, or take another name", c.Name)
	}
	if from != "" {
		l, err := t.layer(from)
		if err != nil {
			return err
		}
		c.Layer = l.ID
	}
	return t.putContainer(c)
}

// Containers returns all containers in order of their names.
func (s *Store) Containers() (list []*Container, err error) {
	err = s.index.view(func(t txn) error {
		return each(t, containerBucket, func(c *Container) error {
			if c.State == ready {
				list = append(list, c)
			}
			return nil
		})
	})
	return list, err
}

// Mounted returns where a container is mounted, "" when it is not.
func (s *Store) Mounted(c *Container) string {
	if c.Mount == "" || c.Mount != s.driver.Direct(driver.Tree{ID: c.Tree}) && !mountedOn(c.Mount) {
		return ""
	}
	return c.Mount
}

// held is a container whose tree is locked.
type held struct {
	*Container
	tree driver.Tree
	lock *treeLock
}

// hold locks the tree of a container.
func (s *Store) hold(name string, exclusive bool) (*held, error) {
	h := &held{}
	find := func(t txn) (err error) {
		if h.Container, err = t.container(name); err != nil {
			return err
		}
		h.tree.ID = h.Tree
		h.tree.Below, err = t.below(h.Layer)
		return err
	}
	if err := s.index.view(find); err != nil {
		return nil, err
	}
	var err error
	tree := h.Tree
	if h.lock, err = s.lockTree(tree, exclusive, "container "+name); err != nil {
		return nil, err
	}
	if err := s.index.view(find); err != nil || h.Tree != tree { // removed before it was locked
		h.lock.unlock()
		if err == nil {
			err = errs.New(errs.Busy, "container %s was just replaced by another layerfs command", name)
		}
		return nil, err
	}
	return h, nil
}

func (s *Store) record(c *Container) error {
	return s.index.update(func(t txn) error { return t.putContainer(c) })
}

// Mount makes a container appear at dir, or where the store sees fit when dir is "",
// and returns the place. A container that is mounted there already is left so.
func (s *Store) Mount(name, dir string, o driver.Options) (string, error) {
	h, err := s.hold(name, true)
	if err != nil {
		return "", err
	}
	defer h.lock.unlock()
	if dir != "" {
		if dir, err = mountpoint(dir); err != nil {
			return "", err
		}
	}
	if at := s.Mounted(h.Container); at != "" {
		if dir == "" || dir == at {
			return at, nil
		}
		return "", errs.New(errs.Busy, "container %s is mounted on %s already", name, at)
	}
	h.Mount = dir
	if dir == "" {
		h.Mount = s.driver.Direct(h.tree)
	}
	if h.Mount != "" && dir == "" {
		return h.Mount, s.record(h.Container)
	}
	return h.Container.Mount, s.mount(h, o)
}

// mountpoint checks a directory that the user wants a mount on.
func mountpoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return "", errs.New(errs.Of(err), "mountpoint %s: %w", dir, err)
	}
	if fi, err := os.Stat(abs); err != nil || !fi.IsDir() {
		return "", errs.New(errs.Usage, "mountpoint %s is not a directory", dir)
	}
	if mountedOn(abs) {
		return "", errs.New(errs.Busy, "something is mounted on %s already", dir)
	}
	return abs, nil
}

// mount mounts h. Where, is recorded first: a mount of which nobody knows could not
// be ended.
func (s *Store) mount(h *held, o driver.Options) error {
	own := h.Mount == ""
	if own {
		h.Mount = s.ownMountpoint(h.Tree)
		if err := sys.MakeDir(h.Mount, 0700); err != nil && !os.IsExist(err) {
			return err
		}
	}
	err := s.record(h.Container)
	if err == nil {
		err = s.driver.Mount(h.tree, h.Mount, o)
	}
	if err != nil {
		if own {
			_ = sys.RemovePath(h.Mount)
		}
		h.Mount = ""
		_ = s.record(h.Container) // a mount that is not there is none in any case
	}
	return err
}

func (s *Store) ownMountpoint(tree string) string { return filepath.Join(s.root, "mnt", tree) }

// Unmount ends the mount of a container.
func (s *Store) Unmount(name string) error {
	h, err := s.hold(name, true)
	if err != nil {
		return err
	}
	defer h.lock.unlock()
	// What was unmounted by other means, or in part, is tidied up.
	if h.Mount == "" {
		return errs.New(errs.NotFound, "container %s is not mounted", name)
	}
	return s.unmount(h)
}

func (s *Store) unmount(h *held) error {
	at := h.Mount
	if at != s.driver.Direct(h.tree) {
		if err := s.driver.Unmount(h.tree, at); err != nil {
			return err
		}
	}
	if at == s.ownMountpoint(h.Tree) {
		if err := sys.RemovePath(at); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	h.Mount = ""
	return s.record(h.Container)
}

// RemoveContainer removes a container. One that is mounted is refused unless force
// is given.
func (s *Store) RemoveContainer(name string, force bool) error {
	h, err := s.hold(name, true)
	if err != nil {
		return err
	}
	defer h.lock.unlock()
	if at := s.Mounted(h.Container); at != "" {
		direct := at == s.driver.Direct(h.tree)
		if !force && !direct {
			return errs.New(errs.Busy, "container %s is mounted on %s: unmount it first, or use --force", name, at)
		}
		if err := s.unmount(h); err != nil {
			return err
		}
	}
	h.State = removing
	if err := s.record(h.Container); err != nil {
		return err
	}
	if err := s.driver.Remove(h.Tree); err != nil {
		return fmt.Errorf("container %s: %w", name, err)
	}
	_ = sys.RemovePath(s.ownMountpoint(h.Tree)) // left by a mount that went away by itself
	return s.index.update(func(t txn) error { return t.deleteTree(containerBucket, name) })
}

// flushed calls use with a container and what tells it from its layer, after all
// that was written into its mount has arrived there.
func (s *Store) flushed(name string, use func(*held, branches.Comparison) error) error {
	h, err := s.hold(name, false)
	if err != nil {
		return err
	}
	defer h.lock.unlock()
	if at := s.Mounted(h.Container); at != "" {
		if err := flush(at); err != nil {
			return err
		}
	}
	return s.driver.Compare(h.tree, func(cmp branches.Comparison) error { return use(h, cmp) })
}

func flush(at string) error {
	fd, err := sys.OpenRoot(at)
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	defer sys.Close(fd)
	if err := sys.SyncFS(fd); err != nil {
		return fmt.Errorf("writing out %s: %w", at, err)
	}
	return nil
}

// Changes calls emit for every difference between a container and its layer.
func (s *Store) Changes(name string, emit func(*branches.Difference) error) error {
	return s.flushed(name, func(_ *held, cmp branches.Comparison) error { return cmp.Run(emit) })
}

// Diff writes what a container changes in its layer as a layer tar.
func (s *Store) Diff(name string, out io.Writer) error {
	return s.flushed(name, func(h *held, _ branches.Comparison) error { return s.writeDiff(h.tree, out) })
}

// Commit makes a layer of what a container is now, on top of the container's layer.
func (s *Store) Commit(name, layer string) (*Layer, error) {
	if err := checkLayerName(layer); err != nil {
		return nil, err
	}
	var made *Layer
	err := s.flushed(name, func(h *held, _ branches.Comparison) error {
		n, err := s.beginLayer(&Layer{ID: newID(), Names: []string{layer}, Parent: h.Layer})
		if err != nil {
			return err
		}
		made = n.Layer
		return s.endLayer(n, s.driver.Commit(h.tree, n.tree))
	})
	return made, err
}

// UsageOf returns the space that a container takes beyond its layer.
func (s *Store) UsageOf(name string) (u driver.Usage, err error) {
	h, err := s.hold(name, false)
	if err != nil {
		return u, err
	}
	defer h.lock.unlock()
	return s.driver.Usage(h.tree)
}

// Use locks a container for somebody who mounts it by himself, and returns what it
// consists of. While it is in use it cannot be mounted, used again or removed. The
// lock is a file that may be passed on to other processes, and ends with the last. Unuse
// is to follow.
func (s *Store) Use(name string) (driver.Source, *os.File, error) {
	h, err := s.hold(name, true)
	if err != nil {
		return driver.Source{}, nil, err
	}
	src, err := s.driver.Source(h.tree)
	if at := s.Mounted(h.Container); err == nil && at != "" && src.Dir == "" {
		err = errs.New(errs.Busy, "container %s is mounted on %s: unmount it first", name, at)
	}
	if err == nil {
		// Shared from here on, so that others may compare it.
		if e := h.lock.try(h.Tree, false); e != nil && !errors.Is(e, unix.EAGAIN) {
			err = e
		}
	}
	if err != nil {
		h.lock.unlock()
		return driver.Source{}, nil, err
	}
	return src, h.lock.f, nil
}

// Unuse is called when what Use has returned is not used any more, and lock closed.
func (s *Store) Unuse(name string) error {
	h, err := s.hold(name, true)
	if err != nil {
		return err
	}
	defer h.lock.unlock()
	if s.Mounted(h.Container) != "" {
		return nil // by somebody else meanwhile, who unmounts it
	}
	return s.driver.Release(h.tree)
}

// mountedOn reports whether something is mounted on the directory at, an absolute path
// without symbolic links. The kernel's table says so also of mounts whose daemon is dead.
func mountedOn(at string) bool {
	_, ok, err := mounts.On(at)
	return ok && err == nil
}
