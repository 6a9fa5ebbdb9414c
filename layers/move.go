package layers

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/driver/devicemapper"
	"github.com/layerfs/layerfs/layers/driver/devices"
)

// A store moves between the drivers thin and devicemapper on one data file, with all its
// layers and containers. The move is recorded first (meta.Moving), and refuses other
// commands until it is complete; each step can be repeated:
//
//	1. the metadata is written to ROOT/move, under its name when it is complete
//	2. a new pool is made of it in ROOT/TO; the data file is renamed last
//	3. the index says that the driver is the other one
//	4. ROOT/FROM and ROOT/move are removed

// house returns what knows how to move in and out of a driver.
func (cfg Config) house(driver string) (devices.House, error) {
	switch {
	case driver == DeviceMapper:
		return devicemapper.House{}, nil
	case driver == Thin && cfg.ThinHouse != nil:
		return cfg.ThinHouse, nil
	}
	return nil, errs.New(errs.Unsupported, "driver %s: stores move between devicemapper and thin only", driver)
}

// Move moves the store in cfg.Root to the driver to, or completes such a move.
func Move(cfg Config, to string) error {
	root, err := makeRoot(cfg.Root)
	if err != nil {
		return err
	}
	s := &Store{root: root, index: index{root}}
	found, err := s.remembered()
	switch {
	case err != nil:
		return err
	case !found:
		return errs.New(errs.NotFound, "there is no store in %s", cfg.Root)
	case s.meta.Moving != "" && s.meta.Moving != to:
		return errs.New(errs.Usage, "the store is being moved to driver %s: complete that first", s.meta.Moving)
	case s.meta.Driver == to && s.movedOnly():
		return s.dropOld()
	case s.meta.Driver == to:
		return errs.New(errs.Usage, "the store has driver %s already", to)
	}
	m := &move{store: s, to: to, scratch: s.scratch()}
	if m.old, err = cfg.house(s.meta.Driver); err != nil {
		return err
	}
	if m.fresh, err = cfg.house(to); err != nil {
		return err
	}
	if s.meta.Moving == "" {
		if err := m.begin(cfg); err != nil {
			return err
		}
	}
	return m.complete()
}

func (s *Store) scratch() string { return filepath.Join(s.root, "move") }

// movedOnly reports whether all of a move but step 4 has been done.
func (s *Store) movedOnly() bool {
	_, err := os.Stat(s.scratch())
	return err == nil
}

// dropOld is step 4: what the other drivers have had goes, the notes last.
func (s *Store) dropOld() error {
	for _, d := range []string{Thin, DeviceMapper} {
		if d != s.meta.Driver {
			if err := os.RemoveAll(filepath.Join(s.root, d)); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(s.scratch())
}

type move struct {
	store      *Store
	to         string
	scratch    string
	old, fresh devices.House
}

// begin opens the store, which nobody may be using, once more as what it is.
func (m *move) begin(cfg Config) error {
	cfg.Driver, cfg.Options = m.store.meta.Driver, nil
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	if err := s.Deactivate(); err != nil {
		return err
	}
	m.store.meta = s.meta // which may be of a newer version now
	return m.store.index.update(func(t txn) error {
		m.store.meta.Moving = m.to
		return t.put(metaBucket, metaKey, m.store.meta)
	})
}

func (m *move) complete() error {
	from, to := m.store.home(), filepath.Join(m.store.root, m.to)
	tenants, xml, err := m.export(from)
	if err != nil {
		return fmt.Errorf("moving out of driver %s: %w", m.store.meta.Driver, err)
	}
	if err := sys.MakeDirs(to, 0700); err != nil {
		return err
	}
	records, err := m.fresh.Import(to, m.old.Data(from), xml, tenants)
	if err != nil {
		return fmt.Errorf("moving into driver %s: %w", m.to, err)
	}
	if err := devices.CopyBase(from, to); err != nil {
		return err
	}
	if err := m.store.sync(); err != nil {
		return err
	}
	if err := m.record(records); err != nil {
		return err
	}
	m.store.meta.Driver = m.to
	return m.store.dropOld()
}

// export is step 1.
func (m *move) export(from string) (tenants []devices.Tenant, xml string, err error) {
	if err := sys.MakeDirs(m.scratch, 0700); err != nil {
		return nil, "", err
	}
	xml = filepath.Join(m.scratch, "pool.xml")
	list := filepath.Join(m.scratch, "devices.json")
	if data, err := os.ReadFile(list); err == nil {
		return tenants, xml, json.Unmarshal(data, &tenants)
	}
	if tenants, err = m.old.Export(from, driverState{m.store.index}, xml); err != nil {
		return nil, "", err
	}
	data, err := json.Marshal(tenants)
	if err == nil {
		err = sys.WriteFile(list+".new", data, 0600)
	}
	if err == nil {
		err = m.store.sync()
	}
	if err == nil {
		err = sys.RenamePath(list+".new", list)
	}
	return tenants, xml, err
}

// record is step 3.
func (m *move) record(records map[string]any) error {
	return m.store.index.update(func(t txn) error {
		r := driverRecords{t}
		var old []string
		if err := r.Each("", func(key string, _ json.RawMessage) error { old = append(old, key); return nil }); err != nil {
			return err
		}
		for _, key := range old {
			if err := r.Delete(key); err != nil {
				return err
			}
		}
		keys := make([]string, 0, len(records))
		for key := range records {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		for _, key := range keys {
			if err := r.Put(key, records[key]); err != nil {
				return err
			}
		}
		moved := m.store.meta
		moved.Driver, moved.Moving = m.to, ""
		return t.put(metaBucket, metaKey, moved)
	})
}
