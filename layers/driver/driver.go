// Package driver says what a store of layers and containers asks of whatever
// keeps their files, and has what several drivers need.
//
// # Terms
//
// A tree is one directory tree that the store knows by an id. It begins as a copy of
// the tree that it stands on, its parent, or as an empty directory, and is changed
// then. Layers and containers are both trees to a driver: a layer is one that nobody
// changes any more.
//
// There are two kinds of drivers. Those of package stacked keep what a tree changes
// in its parent as a branch, and mount the branches on each other. Those of package
// whole keep every tree in full, and rely on the file system to share the blocks.
package driver

import (
	"io"

	"github.com/layerfs/layerfs/branches"
)

// Tree names a tree and those that it stands on.
type Tree struct {
	ID    string   // lower-case letters and digits, never used again
	Below []string // ids, the parent first
}

// Parent returns the tree that t stands on; false when there is none.
func (t Tree) Parent() (Tree, bool) {
	if len(t.Below) == 0 {
		return Tree{}, false
	}
	return Tree{ID: t.Below[0], Below: t.Below[1:]}, true
}

// Options of Mount.
type Options struct {
	ReadOnly bool
	Volatile bool // nothing is synced; for what is thrown away after a crash
}

// Usage is the space that a tree takes by itself.
type Usage struct {
	Bytes  int64 // allocated on disk, and not shared with the parent as far as can be told
	Inodes int64
}

// Field is one line of what `layerfs info` says of a driver, as `docker info`
// called it.
type Field struct{ Name, Value string }

// Source is what a tree consists of, for who makes a mount of his own of it:
// either branches or a directory.
type Source struct {
	Lowers      []string // top first
	Upper, Work string
	UserXattr   bool   // overlay's records are in user.
	Dir         string // the whole tree; "" for branches
}

// Driver keeps the trees of one store. The store sees to it that the trees which
// one stands on are there and change no more, that two calls never concern the
// same tree at once except Compare, Usage and Source beside anything but Remove,
// and that after a crash Remove is called for every tree whose Create, Commit or
// Remove did not end. Calls for different trees may come at once, from several
// processes. Errors carry their class (errs). tests/drivers is the conformance
// suite of this interface.
type Driver interface {
	// Create makes t a copy of its parent, down to the attributes of the root; an
	// empty directory of mode 0755 without one. It costs no more than the driver's
	// way of sharing asks for.
	Create(t Tree) error

	// Apply unpacks a layer tar on top of what t is, which nobody has mounted. warn is told
	// what could not be done and is left out. When it fails, t is good only to be removed.
	Apply(t Tree, layer io.Reader, warn func(string)) error

	// Commit makes the tree to, which stands on what from stands on, and which has
	// the content that from has now. from may be mounted.
	Commit(from, to Tree) error

	// Remove removes t, which nobody has mounted, whatever there is of it: nothing,
	// or what a crash has left. No tree stands on it.
	Remove(id string) error

	// Compare calls use with what tells t from its parent; t may be mounted.
	Compare(t Tree, use func(branches.Comparison) error) error

	// Direct returns the directory in which t lies as a whole, "" when it has to be
	// mounted to be seen.
	Direct(t Tree) string

	// Mount makes t appear at the directory at, and Unmount ends that: EBUSY while
	// somebody uses it. When Unmount returns, nothing of the driver holds t any more.
	Mount(t Tree, at string, o Options) error
	Unmount(t Tree, at string) error

	// Source returns what t consists of, and makes it accessible until Release.
	Source(t Tree) (Source, error)
	Release(t Tree) error

	// Usage adds up what t takes.
	Usage(t Tree) (Usage, error)

	// Info returns what `docker info` said of such a driver, in its order.
	Info() []Field
}
