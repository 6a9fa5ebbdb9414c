package layers

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"golang.org/x/sys/unix"
)

const (
	// lockTime is how long a command waits for another one's work on the same tree,
	// importTime how long for the import of a layer that it needs as well.
	lockTime   = 10 * time.Second
	importTime = time.Hour
)

// treeLock is the lock of one tree: a byte of ROOT/trees.lock, at an offset that
// follows from the tree's id. Such a lock needs no file that somebody would have to
// remove, and ends with the process that has it, and those that inherited it.
type treeLock struct{ f *os.File }

// lockTree locks a tree, exclusively or with others who share it. Who does not get
// the lock in time is told that it is busy, by the name that what gives.
func (s *Store) lockTree(tree string, exclusive bool, what string) (*treeLock, error) {
	return s.lockTreeFor(lockTime, tree, exclusive, what)
}

func (s *Store) lockTreeFor(wait time.Duration, tree string, exclusive bool, what string) (*treeLock, error) {
	f, err := os.OpenFile(filepath.Join(s.root, "trees.lock"), os.O_RDWR|os.O_CREATE, 0600)
	if err != nil {
		return nil, err
	}
	l := &treeLock{f}
	for until := time.Now().Add(wait); ; time.Sleep(10 * time.Millisecond) {
		err = l.try(tree, exclusive)
		if err != unix.EAGAIN && err != unix.EACCES {
			break
		}
		if time.Now().After(until) {
			err = errs.New(errs.Busy, "%s is in use by another layerfs command", what)
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

// try is lockTree without waiting, EAGAIN or EACCES when it is somebody else's.
func (l *treeLock) try(tree string, exclusive bool) error {
	h := fnv.New64a()
	_, _ = h.Write([]byte(tree)) // never fails
	return sys.LockByte(int(l.f.Fd()), int64(h.Sum64()>>1), exclusive)
}

// abandoned locks a tree if nobody has it, nil otherwise: whoever worked on it has died.
func (s *Store) abandoned(tree string) *treeLock {
	f, err := os.OpenFile(filepath.Join(s.root, "trees.lock"), os.O_RDWR|os.O_CREATE, 0600)
	if err != nil {
		return nil
	}
	l := &treeLock{f}
	if l.try(tree, true) != nil {
		f.Close()
		return nil
	}
	return l
}

func (l *treeLock) unlock() {
	if l != nil {
		l.f.Close()
	}
}

// newTree returns an id that no tree ever had.
func newTree() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// newID returns an id for a layer that is none of an image.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
