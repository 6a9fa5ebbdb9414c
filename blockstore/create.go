package blockstore

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// The files of a pool's directory.
const (
	dataName    = "data"
	indexName   = "index"
	ballastName = "ballast"
)

// Create makes a pool in dir, which must not exist or be empty. Nothing is
// left of it after an error.
func Create(dir string, o Options) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	made, err := makeDirectory(dir)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			clean(dir, made)
		}
	}()
	if o.Small {
		if err := os.WriteFile(filepath.Join(dir, smallName), nil, 0o600); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, dataName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	blocks := uint64(o.DataSize) / uint64(o.BlockSize)
	if err := (&osData{f}).Resize(int64(blocks) * int64(o.BlockSize)); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return createIndex(dir, superblock{Options: o, Blocks: blocks}, nil)
}

// createIndex makes the index of the pool in dir with what fill commits to
// it before the superblock.
func createIndex(dir string, sb superblock, fill func(index) error) error {
	if err := os.Mkdir(filepath.Join(dir, indexName), 0o700); err != nil {
		return err
	}
	idx, err := openIndex(dir, sb.Options.Small)
	if err != nil {
		return err
	}
	if err := format(idx, sb, fill); err != nil {
		idx.close()
		return err
	}
	if err := idx.close(); err != nil {
		return err
	}
	return syncPath(dir)
}

// format writes the first superblock.
func format(idx index, sb superblock, fill func(index) error) error {
	sb.Magic, sb.Format = poolMagic, poolFormat
	sb.UUID = newUUID()
	sb.NextNode = max(sb.NextNode, 1)
	if fill != nil {
		if err := fill(idx); err != nil {
			return err
		}
	}
	return idx.commit(nil, []record{encodeJSON(superKey, sb)})
}

func openIndex(dir string, small bool) (*badgerIndex, error) {
	ballast := ""
	if !small {
		ballast = filepath.Join(dir, ballastName)
	}
	return openBadger(filepath.Join(dir, indexName), ballast, small)
}

// Open opens the pool in dir. The caller sees to it that nobody else does.
func Open(dir string) (*Pool, error) {
	if err := finishRestore(dir); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(dir, indexName)); os.IsNotExist(err) {
		return nil, errs.New(errs.NotFound, "%s is not a pool: it has no index", dir)
	}
	data, err := openDataFile(filepath.Join(dir, dataName), os.O_RDWR)
	if os.IsNotExist(err) {
		return nil, errs.New(errs.Corrupt, "the pool %s has lost its data file", dir)
	} else if err != nil {
		return nil, err
	}
	// Whether a pool is small decides what its index is opened with, and only
	// the index knows: it has a ballast, or has made none for want of space.
	idx, err := openIndex(dir, isSmall(dir))
	if err != nil {
		data.Close()
		return nil, err
	}
	p, err := newPool(idx, data)
	if err != nil {
		idx.close()
		data.Close()
		return nil, fmt.Errorf("pool %s: %w", dir, err)
	}
	return p, nil
}

// smallName marks a private pool.
const smallName = "small"

func isSmall(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, smallName))
	return err == nil
}

// makeDirectory makes dir, or takes an empty one, and says whether it made it.
func makeDirectory(dir string) (made bool, err error) {
	err = os.Mkdir(dir, 0o700)
	if err == nil {
		return true, nil
	}
	if !os.IsExist(err) {
		return false, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	if len(entries) > 0 {
		return false, errs.New(errs.Failed, "%s is not empty: a pool needs a directory of its own: %w", dir, unix.EEXIST)
	}
	return false, nil
}

// clean removes what Create made.
func clean(dir string, all bool) {
	if all {
		_ = os.RemoveAll(dir)
		return
	}
	for _, name := range []string{dataName, indexName, newIndexName, ballastName, smallName} {
		_ = os.RemoveAll(filepath.Join(dir, name))
	}
}

func syncPath(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// newUUID returns a random UUID, version 4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
