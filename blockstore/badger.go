package blockstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// badgerIndex is the index of a pool on disk.
//
// SyncWrites is on: db.Sync would miss a memtable that has just been
// rotated. Badger then syncs every transaction by itself, which is why a
// commit of the pool is one transaction wherever it fits.
//
// Badger writes through maps of sparse files and dies by SIGBUS when the
// disk is full. Three things stand against that: room refuses a commit while
// there is still space for what badger may do on its own, a ballast file is
// given back when others fill the disk nevertheless, and the log that is
// being written has its blocks allocated beforehand.
type badgerIndex struct {
	db       *badger.DB
	dir      string
	floor    int64 // bytes of the disk that must stay free for badger
	ballast  string
	memtable int64
	log      logFile // the log that is being written
}

const (
	bigMemtable   = 8 << 20
	smallMemtable = 2 << 20
)

func badgerOptions(dir string, memtable int64) badger.Options {
	return badger.DefaultOptions(dir).
		WithSyncWrites(true).
		WithMemTableSize(memtable).
		WithNumMemtables(2).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(6).
		WithNumCompactors(2).
		WithBaseTableSize(4 << 20).
		WithValueLogFileSize(16 << 20).
		WithValueThreshold(memtable / 8). // no value is that long: the value log stays empty
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithDetectConflicts(false). // one writer
		WithMetricsEnabled(false).
		WithNumVersionsToKeep(1).
		WithChecksumVerificationMode(options.OnTableAndBlockRead).
		WithLogger(nil)
}

// openBadger opens or makes the index in dir. ballast names a file to keep
// in reserve, or is empty.
func openBadger(dir, ballast string, small bool) (*badgerIndex, error) {
	memtable := int64(bigMemtable)
	if small {
		memtable = smallMemtable
	}
	b := &badgerIndex{dir: dir, ballast: ballast, memtable: memtable, floor: 6*memtable + 8<<20}
	b.keepBallast()
	if err := removeEmptyLogs(dir); err != nil {
		return nil, err
	}
	db, err := badger.Open(badgerOptions(dir, memtable))
	if err != nil {
		return nil, openError(dir, err)
	}
	b.db = db
	return b, nil
}

func openError(dir string, err error) error {
	if strings.Contains(err.Error(), "Cannot acquire directory lock") {
		return errs.New(errs.Busy, "index %s is in use by another process: %w", dir, err)
	}
	var errno unix.Errno
	if errors.As(err, &errno) && errno != unix.EIO && errno != unix.EINVAL {
		return fmt.Errorf("index %s: %w", dir, err)
	}
	return errs.New(errs.Corrupt, "index %s is damaged: %w", dir, err)
}

// removeEmptyLogs removes logs that a power cut left without length: they
// hold nothing, and badger refuses to open with them.
func removeEmptyLogs(dir string) error {
	for _, pattern := range []string{"*.mem", "*.vlog"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, name := range names {
			if fi, err := os.Lstat(name); err == nil && fi.Mode().IsRegular() && fi.Size() == 0 {
				if err := os.Remove(name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (b *badgerIndex) get(key []byte) (val []byte, err error) {
	err = b.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if err != nil {
			return err
		}
		val, err = item.ValueCopy(nil)
		return err
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, errNoKey
	}
	return val, err
}

func (b *badgerIndex) scan(prefix []byte, values bool, visit func(key, val []byte) error) error {
	return b.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix, PrefetchValues: values, PrefetchSize: 16})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			item := it.Item()
			if !values {
				if err := visit(item.Key(), nil); err != nil {
					return err
				}
				continue
			}
			if err := item.Value(func(val []byte) error { return visit(item.Key(), val) }); err != nil {
				return err
			}
		}
		return nil
	})
}

// commit writes nodes and roots in one transaction when they fit one, else
// the nodes in as many as it takes and the roots in the last.
func (b *badgerIndex) commit(nodes, roots []record) error {
	txn := b.db.NewTransaction(true)
	defer func() { txn.Discard() }()
	for _, r := range nodes {
		err := put(txn, r)
		if errors.Is(err, badger.ErrTxnTooBig) {
			if err = txn.Commit(); err == nil {
				txn = b.db.NewTransaction(true)
				err = put(txn, r)
			}
		}
		if err != nil {
			return err
		}
	}
	if err := putAll(txn, roots); errors.Is(err, badger.ErrTxnTooBig) {
		// Some of the roots are in this transaction already: it is dropped
		// and its nodes written again without them.
		txn.Discard()
		return b.commitApart(nodes, roots)
	} else if err != nil {
		return err
	}
	b.log.prepare(b.dir, 2*b.memtable, sizeOf(nodes)+sizeOf(roots))
	return txn.Commit()
}

func sizeOf(records []record) (n int64) {
	for _, r := range records {
		n += int64(len(r.key) + len(r.val))
	}
	return n
}

func (b *badgerIndex) commitApart(nodes, roots []record) error {
	batch := b.db.NewWriteBatch()
	defer batch.Cancel()
	for _, r := range nodes {
		var err error
		if r.val == nil {
			err = batch.Delete(r.key)
		} else {
			err = batch.Set(r.key, r.val)
		}
		if err != nil {
			return err
		}
	}
	if err := batch.Flush(); err != nil {
		return err
	}
	return b.db.Update(func(txn *badger.Txn) error { return putAll(txn, roots) })
}

func put(txn *badger.Txn, r record) error {
	if r.val == nil {
		return txn.Delete(r.key)
	}
	return txn.Set(r.key, r.val)
}

func putAll(txn *badger.Txn, records []record) error {
	for _, r := range records {
		if err := put(txn, r); err != nil {
			return err
		}
	}
	return nil
}

func (b *badgerIndex) bytes() int64 {
	var sum int64
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(b.dir, e.Name()), &st) == nil {
			sum += st.Blocks * SectorSize
		}
	}
	return sum
}

func (b *badgerIndex) close() error { return b.db.Close() }
