package blockstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore/thinxml"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// SidecarPath is where the sidecar of a data file lies.
func SidecarPath(data string) string { return data + ".json" }

// ReadSidecar reads a sidecar; one that does not exist is empty.
func ReadSidecar(path string) (*Sidecar, error) {
	s := &Sidecar{}
	raw, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return s, nil
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, errs.New(errs.Corrupt, "sidecar %s: %w", path, err)
	}
	return s, nil
}

// WriteSidecar writes the sidecar of the pool in the current directory.
func WriteSidecar(s *Sidecar) error {
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := SidecarPath(dataName)
	if err := os.WriteFile(path+".new", append(raw, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Restore makes a pool in dir of a data file and thin_dump's XML of the
// metadata that belongs to it. dir is new, or an exported pool whose data
// file it is. Until the very end nothing that was there is touched; the data
// file is moved, or copied from another file system.
func Restore(dir, data string, xml io.Reader, side *Sidecar) error {
	back, err := exportedPool(dir, data)
	if err != nil {
		return err
	}
	if back {
		return restoreBack(dir, xml, side)
	}
	made, err := makeDirectory(dir)
	if err != nil {
		return err
	}
	err = build(dir, indexName, data, xml, side)
	if err == nil {
		err = takeData(data, filepath.Join(dir, dataName))
	}
	if err != nil {
		clean(dir, made)
		return err
	}
	return syncPath(dir)
}

// exportedPool reports whether dir is an exported pool that data belongs to.
func exportedPool(dir, data string) (bool, error) {
	own, err := os.Stat(filepath.Join(dir, dataName))
	if err != nil {
		return false, nil
	}
	given, err := os.Stat(data)
	if err != nil || !os.SameFile(own, given) {
		return false, nil
	}
	p, err := Open(dir)
	if err != nil {
		return false, err
	}
	exported := p.sb.Exported
	if err := p.Close(); err != nil {
		return false, err
	}
	if !exported {
		return false, errs.New(errs.Busy, "the pool %s is not exported: its own index is the one that is right", dir)
	}
	return true, nil
}

const newIndexName, oldIndexName = "index.new", "index.old"

// restoreBack replaces the index of an exported pool.
func restoreBack(dir string, xml io.Reader, side *Sidecar) error {
	fresh, old, now := filepath.Join(dir, newIndexName), filepath.Join(dir, oldIndexName), filepath.Join(dir, indexName)
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := build(dir, newIndexName, filepath.Join(dir, dataName), xml, side); err != nil {
		_ = os.RemoveAll(fresh)
		return err
	}
	// A crash between the renames leaves a pool without an index and both of
	// them beside it; Open puts the new one in place.
	if err := os.Rename(now, old); err != nil {
		return err
	}
	if err := os.Rename(fresh, now); err != nil {
		return err
	}
	if err := syncPath(dir); err != nil {
		return err
	}
	return os.RemoveAll(old)
}

// finishRestore completes a restoreBack that a crash cut short.
func finishRestore(dir string) error {
	fresh, now := filepath.Join(dir, newIndexName), filepath.Join(dir, indexName)
	if _, err := os.Lstat(now); !os.IsNotExist(err) {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, oldIndexName)); err != nil {
		return nil
	}
	return os.Rename(fresh, now)
}

// build makes an index called name in dir out of XML.
func build(dir, name, data string, xml io.Reader, side *Sidecar) error {
	fi, err := os.Stat(data)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	idx, err := openBadger(path, "", side.Options.Small)
	if err != nil {
		return err
	}
	b := &builder{idx: idx, side: side, dataSize: fi.Size(), seen: map[[32]byte]uint64{}, owners: map[uint64][]uint32{}, names: map[string]struct{}{}, next: 1}
	err = thinxml.Read(xml, b)
	if err == nil {
		err = b.finish()
	}
	if err == nil {
		err = verify(idx)
	}
	if e := idx.close(); err == nil {
		err = e
	}
	return err
}

// verify loads an index, which checks all of it, before anything is moved.
func verify(idx index) error {
	p := &Pool{idx: idx, changed: make(chan struct{})}
	if err := p.load(); err != nil {
		return err
	}
	if p.mode == ReadOnly {
		return errs.New(errs.Corrupt, "the metadata is damaged: %w", p.cause)
	}
	return nil
}

func takeData(from, to string) error {
	if err := os.Rename(from, to); err == nil {
		return nil
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	if err := sys.CopyData(int(dst.Fd()), int(src.Fd()), fi.Size(), true); err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	return dst.Sync()
}

// DockerDevices reads the names and sizes that Docker's devicemapper driver
// kept in a directory beside its loop files, one JSON file for each device.
// A directory that does not exist is empty.
func DockerDevices(dir string) ([]SidecarDevice, error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var out []SidecarDevice
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		var d struct {
			ID   *uint32 `json:"device_id"`
			Size int64   `json:"size"`
		}
		if json.Unmarshal(raw, &d) != nil || d.ID == nil || d.Size <= 0 {
			continue // the driver's own state lies there too
		}
		name := e.Name()
		out = append(out, SidecarDevice{ID: *d.ID, Name: name, Size: d.Size})
	}
	return out, nil
}
