package layers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// formatVersion is that of the index. Never reuse a number.
//
//	1    no unfinishedBucket
//	2    this one
const formatVersion = 2

// Buckets of the index; values are JSON.
var (
	metaBucket       = []byte("meta")       // "store" → meta
	layerBucket      = []byte("layers")     // id → Layer
	nameBucket       = []byte("names")      // name of a layer → id
	containerBucket  = []byte("containers") // name → Container
	driverBucket     = []byte("driver")     // what the driver keeps, see driver.State
	unfinishedBucket = []byte("unfinished") // bucket/key of layers and containers that are not ready, so that nobody has to look through all
	everyBucket      = [][]byte{metaBucket, layerBucket, nameBucket, containerBucket, driverBucket, unfinishedBucket}
	metaKey          = []byte("store")
	errIndexDisorder = errs.New(errs.Corrupt, "the index contradicts itself")
)

// state says how far a tree is. The words are part of the format.
type state string

const (
	ready    state = ""
	making   state = "making"
	removing state = "removing"
)

// meta is what the store remembers of itself.
type meta struct {
	Version int       `json:"version"`
	Driver  string    `json:"driver"`
	Created time.Time `json:"created"`
	Options []string  `json:"options,omitempty"` // KEY=VALUE, as the store was made with
	Moving  string    `json:"moving,omitempty"`  // the driver that the store is being moved to
}

// Layer is what the index has of a layer.
type Layer struct {
	ID      string    `json:"id"`
	Names   []string  `json:"names,omitempty"`
	Parent  string    `json:"parent,omitempty"` // id
	Created time.Time `json:"created"`
	Size    int64     `json:"size"` // bytes on disk that it adds to its parent
	Inodes  int64     `json:"inodes"`
	DiffID  string    `json:"diff_id,omitempty"` // of an image's layer: the digest of its tar
	Tree    string    `json:"tree"`
	State   state     `json:"state,omitempty"`
}

// Container is what the index has of a container.
type Container struct {
	Name    string    `json:"name"`
	Layer   string    `json:"layer,omitempty"` // id
	Created time.Time `json:"created"`
	// Mount is where it was mounted last; whether it still is, the kernel knows.
	Mount string `json:"mount,omitempty"`
	Tree  string `json:"tree"`
	State state  `json:"state,omitempty"`
}

// index is the file in which all that is kept.
type index struct{ root string }

// txn is one transaction.
type txn struct{ tx *bolt.Tx }

// view calls fn with the index as it is.
func (x index) view(fn func(txn) error) error {
	return x.open(true, func(db *bolt.DB) error { return db.View(func(tx *bolt.Tx) error { return fn(txn{tx}) }) })
}

// update calls fn with the index; what it changes is on disk when update has
// returned nil, and has not happened otherwise.
func (x index) update(fn func(txn) error) error {
	return x.open(false, func(db *bolt.DB) error {
		return db.Update(func(tx *bolt.Tx) error {
			if err := fn(txn{tx}); err != nil {
				return err
			}
			return sys.Step("index commit")
		})
	})
}

// open opens the index for the time of use. The lock is ours rather than bbolt's,
// which looks for it twenty times a second only.
func (x index) open(readOnly bool, use func(*bolt.DB) error) (err error) {
	lock, err := os.OpenFile(filepath.Join(x.root, "lock"), os.O_RDWR|os.O_CREATE, 0600)
	if err != nil {
		return err
	}
	defer lock.Close()
	how := unix.LOCK_EX
	if readOnly {
		how = unix.LOCK_SH
	}
	if err := sys.FlockWait(int(lock.Fd()), how); err != nil {
		return fmt.Errorf("%s: %w", lock.Name(), err)
	}
	path := filepath.Join(x.root, "index.db")
	db, err := bolt.Open(path, 0600, &bolt.Options{ReadOnly: readOnly, NoGrowSync: false, Timeout: time.Second})
	if err != nil {
		return x.explain(err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	defer func() {
		// bbolt panics on pages that make no sense.
		if p := recover(); p != nil {
			err = errs.New(errs.Corrupt, "the index %s is damaged: %v", path, p)
		}
	}()
	return use(db)
}

func (x index) explain(err error) error {
	if errors.Is(err, bolt.ErrInvalid) || errors.Is(err, bolt.ErrChecksum) || errors.Is(err, bolt.ErrVersionMismatch) {
		return errs.New(errs.Corrupt, "%s is no index of a store, or a damaged one: %w", filepath.Join(x.root, "index.db"), err)
	}
	return err
}

// exists reports whether there is a store.
func (x index) exists() bool {
	_, err := os.Stat(filepath.Join(x.root, "index.db"))
	return err == nil
}

func (t txn) get(bucket, key []byte, into any) (bool, error) {
	b := t.tx.Bucket(bucket)
	if b == nil {
		return false, nil
	}
	v := b.Get(key)
	if v == nil {
		return false, nil
	}
	if err := json.Unmarshal(v, into); err != nil {
		return false, errs.New(errs.Corrupt, "the index has something unreadable of %q: %w", key, err)
	}
	return true, nil
}

func (t txn) put(bucket, key []byte, value any) error {
	v, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return t.tx.Bucket(bucket).Put(key, v)
}

func (t txn) delete(bucket, key []byte) error { return t.tx.Bucket(bucket).Delete(key) }

// mark keeps unfinishedBucket as the state of what the bucket has with this key says.
func (t txn) mark(bucket, key []byte, s state) error {
	mark := bytes.Join([][]byte{bucket, key}, []byte("/"))
	if s == ready {
		return t.delete(unfinishedBucket, mark)
	}
	return t.tx.Bucket(unfinishedBucket).Put(mark, []byte{})
}

// unfinished calls fn with the bucket and the key of all that is not ready.
func (t txn) unfinished(fn func(bucket, key []byte) error) error {
	return t.tx.Bucket(unfinishedBucket).ForEach(func(mark, _ []byte) error {
		bucket, key, _ := bytes.Cut(mark, []byte("/"))
		return fn(bytes.Clone(bucket), bytes.Clone(key))
	})
}

// each calls fn with every value of a bucket, in order of the keys.
func each[T any](t txn, bucket []byte, fn func(*T) error) error {
	b := t.tx.Bucket(bucket)
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, v []byte) error {
		var value T
		if err := json.Unmarshal(v, &value); err != nil {
			return errs.New(errs.Corrupt, "the index has something unreadable of %q: %w", k, err)
		}
		return fn(&value)
	})
}

func (t txn) putLayer(l *Layer) error { return t.putTree(layerBucket, l.ID, l.State, l) }

func (t txn) putContainer(c *Container) error {
	return t.putTree(containerBucket, c.Name, c.State, c)
}

func (t txn) putTree(bucket []byte, key string, s state, value any) error {
	return errors.Join(t.mark(bucket, []byte(key), s), t.put(bucket, []byte(key), value))
}

// deleteTree takes a layer or a container out of the index.
func (t txn) deleteTree(bucket []byte, key string) error {
	return errors.Join(t.mark(bucket, []byte(key), ready), t.delete(bucket, []byte(key)))
}

// layerByID returns a layer that is there in full.
func (t txn) layerByID(id string) (*Layer, error) {
	var l Layer
	ok, err := t.get(layerBucket, []byte(id), &l)
	if err == nil && (!ok || l.State != ready) {
		err = errs.New(errs.NotFound, "there is no layer %q", short(id))
	}
	return &l, err
}

// minPrefix is how many digits of an id are enough to be taken for one.
const minPrefix = 6

// layer finds a layer by its name, its id or the beginning of its id.
func (t txn) layer(ref string) (*Layer, error) {
	var id string
	if ok, err := t.get(nameBucket, []byte(ref), &id); err != nil || ok {
		if err != nil {
			return nil, err
		}
		return t.layerByID(id)
	}
	digits := strings.TrimPrefix(ref, "sha256:")
	if len(digits) >= minPrefix && strings.Trim(digits, "0123456789abcdef") == "" {
		return t.byPrefix(digits, ref)
	}
	return nil, errs.New(errs.NotFound, "there is no layer %q", ref)
}

func (t txn) byPrefix(digits, ref string) (*Layer, error) {
	var found *Layer
	err := each(t, layerBucket, func(l *Layer) error {
		if l.State != ready || !strings.HasPrefix(l.ID, digits) {
			return nil
		}
		if found != nil {
			return errs.New(errs.Usage, "%q is the beginning of several ids: give more of it", ref)
		}
		found = l
		return nil
	})
	if err == nil && found == nil {
		err = errs.New(errs.NotFound, "there is no layer %q", ref)
	}
	return found, err
}

// container finds a container that is there in full.
func (t txn) container(name string) (*Container, error) {
	var c Container
	ok, err := t.get(containerBucket, []byte(name), &c)
	if err == nil && (!ok || c.State != ready) {
		err = errs.New(errs.NotFound, "there is no container %q", name)
	}
	return &c, err
}

// below returns the trees that something with this parent stands on, the parent first.
func (t txn) below(parent string) (trees []string, err error) {
	for parent != "" {
		var l Layer
		if ok, err := t.get(layerBucket, []byte(parent), &l); err != nil || !ok || len(trees) > maxDepth {
			return nil, errors.Join(errIndexDisorder, err)
		}
		trees = append(trees, l.Tree)
		parent = l.Parent
	}
	return trees, nil
}

// maxDepth is how many layers may stand on each other. Kernel overlay takes 500.
const maxDepth = 500

// dependent returns what stands on the layer id beside the layer but, in words; "" for
// nothing.
func (t txn) dependent(id, but string) (what string, err error) {
	err = each(t, layerBucket, func(l *Layer) error {
		if l.Parent == id && l.ID != but {
			what = "layer " + l.title()
		}
		return nil
	})
	if err != nil || what != "" {
		return what, err
	}
	err = each(t, containerBucket, func(c *Container) error {
		if c.Layer == id {
			what = "container " + c.Name
		}
		return nil
	})
	return what, err
}

// title is what a layer is called in messages.
func (l *Layer) title() string {
	if len(l.Names) > 0 {
		return l.Names[0]
	}
	return short(l.ID)
}

// short is the beginning of an id, as people see it.
func short(id string) string { return id[:min(len(id), 12)] }
