package layers

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/driver/devices"
	"github.com/layerfs/layerfs/layers/driver/stacked"
)

// Config says where a store is and how it is to be worked with.
type Config struct {
	Root   string // made when it is not there
	Driver string // "auto" or the name of a driver
	// Options are KEY=VALUE, as Docker's --storage-opt. Those that a store is made with
	// are remembered.
	Options    []string
	remembered []string
	// Union makes FUSE mounts for the driver union.
	Union stacked.Mounter
	// ThinPool opens or makes the block store in home for the driver thin.
	ThinPool func(home string, o devices.Options) (devices.Pool, error)
	// ThinHouse moves stores in and out of it.
	ThinHouse devices.House
	// Warn is told what a command leaves out or does besides.
	Warn func(string)
}

// Store is an open store. Its methods may be called at once, also by several processes.
type Store struct {
	root   string // absolute and real
	index  index
	driver driver.Driver
	meta   meta
	choice []Choice // how the driver came to be chosen, when this process did
	warn   func(string)
}

// Open opens the store in cfg.Root, or makes it, and removes what commands that
// died have left.
func Open(cfg Config) (*Store, error) {
	root, err := makeRoot(cfg.Root)
	if err != nil {
		return nil, err
	}
	s := &Store{root: root, index: index{root}, warn: cfg.Warn}
	if s.warn == nil {
		s.warn = func(string) {}
	}
	name, err := canonicalDriver(cfg.Driver)
	if err != nil {
		return nil, err
	}
	found, err := s.settleDriver(name, cfg)
	if err != nil {
		return nil, err
	}
	if err := checkOptions(s.meta.Driver, cfg.Options); err != nil {
		return nil, err
	}
	cfg.Warn, cfg.remembered = s.warn, s.meta.Options
	if !found { // they are the same
		cfg.Options = nil
	}
	if s.driver, err = openDriver(s.meta.Driver, s.home(), driverState{s.index}, cfg); err != nil {
		if !found {
			s.forget()
		}
		return nil, err
	}
	return s, s.recover()
}

// forget gives up the driver of a store that was just made: it cannot be opened, and
// another one can be tried.
func (s *Store) forget() {
	_ = s.index.update(func(t txn) error {
		for _, b := range [][]byte{layerBucket, containerBucket, driverBucket} {
			if k, _ := t.tx.Bucket(b).Cursor().First(); k != nil {
				return nil
			}
		}
		return t.delete(metaBucket, metaKey)
	})
}

// Exists reports whether there is a store in the directory root.
func Exists(root string) bool { return index{root}.exists() }

// makeRoot makes the directory of the store. What lies in images, set-user-id
// programs among it, is nothing for others: it is closed to them.
func makeRoot(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if err := sys.MakeDirs(abs, 0700); err != nil {
		return "", errs.New(errs.Of(err), "store %s cannot be made: %w", path, err)
	}
	for _, dir := range []string{"mnt", "run"} {
		if err := sys.MakeDirs(filepath.Join(abs, dir), 0700); err != nil {
			return "", errs.New(errs.Of(err), "store %s: %w", path, err)
		}
	}
	return filepath.EvalSymlinks(abs)
}

// settleDriver finds out which driver the store has, and gives it one when it is new.
// found is whether it was there.
func (s *Store) settleDriver(name string, cfg Config) (found bool, err error) {
	if found, err = s.remembered(); err != nil {
		return found, err
	}
	if !found {
		if name == auto {
			if name, s.choice, err = choose(s.root); err != nil {
				return found, err
			}
		}
		if err := checkOptions(name, cfg.Options); err != nil {
			return found, err
		}
		if err := s.remember(name, cfg.Options); err != nil {
			return found, err
		}
	}
	if s.meta.Version == 1 {
		if err := s.upgrade(); err != nil {
			return found, err
		}
	}
	switch {
	case s.meta.Version != formatVersion:
		return found, errs.New(errs.Corrupt, "the store %s is of version %d, this layerfs knows version %d", s.root, s.meta.Version, formatVersion)
	case s.meta.Moving != "":
		return found, errs.New(errs.Busy, "the store %s is being moved to driver %s: `layerfs device convert --to %s` completes that", s.root, s.meta.Moving, s.meta.Moving)
	case name != auto && name != s.meta.Driver:
		return found, errs.New(errs.Usage, "the store %s was made with driver %s: use --driver %s, or another --root for driver %s", s.root, s.meta.Driver, s.meta.Driver, name)
	}
	return found, nil
}

func (s *Store) remembered() (found bool, err error) {
	if !s.index.exists() {
		return false, nil
	}
	err = s.index.view(func(t txn) error {
		found, err = t.get(metaBucket, metaKey, &s.meta)
		return err
	})
	return found, err
}

// remember writes the driver into the index, unless somebody else did meanwhile.
func (s *Store) remember(name string, options []string) error {
	return s.index.update(func(t txn) error {
		for _, b := range everyBucket {
			if _, err := t.tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		if found, err := t.get(metaBucket, metaKey, &s.meta); found || err != nil {
			return err
		}
		s.meta = meta{Version: formatVersion, Driver: name, Options: options, Created: time.Now().UTC()}
		return t.put(metaBucket, metaKey, s.meta)
	})
}

func (s *Store) home() string { return filepath.Join(s.root, s.meta.Driver) }

// Root is the directory of the store.
func (s *Store) Root() string { return s.root }

// Driver is the name of the store's driver.
func (s *Store) Driver() string { return s.meta.Driver }

// sync brings the files of the store to the disk.
func (s *Store) sync() error {
	fd, err := sys.OpenRoot(s.root)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	if err := sys.SyncFS(fd); err != nil {
		return fmt.Errorf("writing out %s: %w", s.root, err)
	}
	return nil
}
