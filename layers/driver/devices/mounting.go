package devices

import (
	"errors"
	"hash/fnv"
	"os"
	"path/filepath"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
)

// A file system is mounted for one of two reasons: somebody wants to see the tree
// (Mount, Source), for which there is the file HOME/kept/ID, or a command works on it,
// for which it holds a lock (a byte of HOME/users) as long as it does. Whoever is the
// last unmounts.

// locked runs fn while no other process attaches, mounts and so on.
func (d *Driver) locked(fn func() error) error {
	return driver.Locked(filepath.Join(d.home, "lock"), fn)
}

func (d *Driver) kept(id string) string { return filepath.Join(d.home, "kept", id) }

// Mount implements driver.Driver. The kernel's file system is mounted where only the
// driver looks, and its tree shown at at; fuse2fs can show the tree by itself.
func (d *Driver) Mount(t driver.Tree, at string, o driver.Options) error {
	if !d.fs.kernel {
		_, err := d.keep(t.ID, at, o.ReadOnly)
		return err
	}
	root, err := d.keep(t.ID, d.point(t.ID), false)
	if err != nil {
		return err
	}
	if err := sys.Bind(root, at, o.ReadOnly); err != nil {
		return errors.Join(errs.New(errs.Of(err), "mounting on %s: %w", at, err), d.letGo(t.ID))
	}
	return nil
}

// Unmount implements driver.Driver.
func (d *Driver) Unmount(t driver.Tree, at string) error {
	if d.fs.kernel {
		if err := driver.Unmount(at); err != nil {
			return err
		}
	}
	return d.letGo(t.ID)
}

// Release implements driver.Driver.
func (d *Driver) Release(t driver.Tree) error { return d.letGo(t.ID) }

// Source implements driver.Driver. The file system stays mounted until Release.
func (d *Driver) Source(t driver.Tree) (driver.Source, error) {
	root, err := d.keep(t.ID, d.point(t.ID), false)
	return driver.Source{Dir: root}, err
}

// keep mounts a tree until letGo and returns where it is.
func (d *Driver) keep(id, at string, readOnly bool) (root string, err error) {
	err = d.locked(func() error {
		if err := sys.WriteFile(d.kept(id), nil, 0600); err != nil {
			return err
		}
		if root, err = d.mountLocked(id, at, readOnly); err != nil {
			return errors.Join(err, sys.RemovePath(d.kept(id)))
		}
		return nil
	})
	return root, err
}

// letGo ends keep. Whoever uses the tree keeps that from happening: Busy.
func (d *Driver) letGo(id string) error {
	return d.locked(func() error {
		users, err := d.users()
		if err != nil {
			return err
		}
		defer users.Close()
		if lockUser(users, id, true) != nil {
			return sys.RemovePath(d.kept(id)) // a command works on it; it will unmount
		}
		if err := d.releaseLocked(id); err != nil {
			return err
		}
		if err := sys.RemovePath(d.kept(id)); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	})
}

// with calls use with the directory that the tree id is in, mounted for that time
// unless it is already.
func (d *Driver) with(id string, use func(root string) error) error {
	users, err := d.users()
	if err != nil {
		return err
	}
	defer users.Close()
	var root string
	err = d.locked(func() error {
		if err := lockUser(users, id, false); err != nil {
			return err
		}
		root, err = d.mountLocked(id, d.point(id), false)
		return err
	})
	if err != nil {
		return err
	}
	err = use(root)
	return errors.Join(err, d.locked(func() error {
		defer users.Close() // before others may look
		if _, kept := os.Stat(d.kept(id)); kept == nil || lockUser(users, id, true) != nil {
			return nil
		}
		return d.releaseLocked(id)
	}))
}

// users opens the file of locks of those who work on trees.
func (d *Driver) users() (*os.File, error) {
	return os.OpenFile(filepath.Join(d.home, "users"), os.O_RDWR|os.O_CREATE, 0600)
}

// lockUser takes the lock of a tree: with others, or as the only one.
func lockUser(users *os.File, id string, only bool) error {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // never fails
	return sys.LockByte(int(users.Fd()), int64(h.Sum64()>>1), only)
}

// mounted returns where the file system of a tree is mounted, and where the tree is;
// "" when it is not.
func (d *Driver) mounted(id string) (point, root string) {
	return d.fs.mounted(d.pool.Path(id), d.point(id))
}

// mountLocked attaches the device of a tree and mounts its file system on at, unless
// it is mounted, and returns where the tree is. Precondition: see locked.
func (d *Driver) mountLocked(id, at string, readOnly bool) (root string, err error) {
	if _, root = d.mounted(id); root != "" {
		return root, nil
	}
	if err := sys.MakeDirs(at, 0700); err != nil {
		return "", err
	}
	path, err := d.pool.Attach(id)
	if err == nil {
		root, err = d.fs.mount(path, at, readOnly)
	}
	if err != nil {
		_ = sys.RemovePath(d.point(id))
		return "", errors.Join(err, d.pool.Detach(id))
	}
	return root, nil
}

// releaseLocked unmounts the file system of a tree, if it is mounted, and detaches the
// device. Precondition: see locked.
func (d *Driver) releaseLocked(id string) error {
	if at, _ := d.mounted(id); at != "" {
		if err := d.fs.unmount(at); err != nil {
			return err
		}
	}
	if err := sys.RemovePath(d.point(id)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return d.pool.Detach(id)
}

// Stop takes everything out of the kernel, also what commands that died have left mounted.
func (d *Driver) Stop() error {
	entries, err := os.ReadDir(d.point(""))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := d.sweep(e.Name()); err != nil {
			return err
		}
	}
	return d.pool.Stop()
}

// sweep unmounts a tree which is not to stay mounted and on which no command works.
func (d *Driver) sweep(id string) error {
	return d.locked(func() error {
		users, err := d.users()
		if err != nil {
			return err
		}
		defer users.Close()
		if _, kept := os.Stat(d.kept(id)); kept == nil || lockUser(users, id, true) != nil {
			return nil
		}
		return d.releaseLocked(id)
	})
}
