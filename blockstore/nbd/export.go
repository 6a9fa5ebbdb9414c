package nbd

import (
	"errors"
	"fmt"
	"sync"

	"github.com/layerfs/layerfs/internal/errs"
)

// Exports is what a server offers. Its methods may be called by several
// goroutines at once.
type Exports interface {
	// List returns the names that can be opened.
	List() ([]string, error)

	// Open opens an export. It is called again for a name only after the
	// Export before was closed. The client is told the text of the error;
	// its class decides the kind of the refusal.
	Open(name string) (Export, error)
}

// Export is an open block device. Its methods may be called by several
// goroutines at once, but Close only after all others have returned.
// Offsets and lengths are in bytes and lie within Size; lengths are not 0.
type Export interface {
	// Size is the length of the device in bytes. Clients keep the one they
	// were told when they connected.
	Size() int64

	// BlockSize is the preferred size of requests, and the unit in which
	// Discard and Zero free space, in bytes.
	BlockSize() int

	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)

	// Discard frees the whole blocks inside the range. It is advice.
	Discard(off, length int64) error

	// Zero makes the range read as zeros, ragged edges too. Only mayUnmap
	// lets it free blocks.
	Zero(off, length int64, mayUnmap bool) error

	// Flush makes durable all that was written before it was called, on
	// this export and on all others.
	Flush() error

	// Extents returns consecutive extents that cover the range exactly.
	Extents(off, length int64) ([]Extent, error)

	Close() error
}

// Extent is a stretch of an export that is mapped to data, or is not and
// reads as zeros.
type Extent struct {
	Length int64 // bytes, not 0
	Data   bool
}

// opened is an export that connections share.
type opened struct {
	Export
	name  string
	ready chan struct{} // closed when Open has returned; err is set before
	err   error

	// Guarded by registry.mu.
	refs    int
	closing bool
	gone    chan struct{} // closed when Close has returned
}

// registry holds the exports that are open.
type registry struct {
	exports Exports
	mu      sync.Mutex
	open    map[string]*opened
}

func newRegistry(exports Exports) *registry {
	return &registry{exports: exports, open: map[string]*opened{}}
}

// canonical returns the name of the export that a client means: the empty
// name is the default export (proto.md NBD_OPT_EXPORT_NAME), which there is
// when there is only one.
func (r *registry) canonical(name string) (string, error) {
	if name != "" {
		return name, nil
	}
	names, err := r.exports.List()
	if err != nil {
		return "", fmt.Errorf("list exports: %w", err)
	}
	if len(names) != 1 {
		return "", errs.New(errs.NotFound, "no default among %d exports: name one", len(names))
	}
	return names[0], nil
}

// acquire opens an export, or shares it with those who have. It waits for
// the Close of the last user before: the store may lend it to one at a time.
func (r *registry) acquire(name string) (*opened, error) {
	for {
		r.mu.Lock()
		e := r.open[name]
		if e == nil {
			e = &opened{name: name, refs: 1, ready: make(chan struct{}), gone: make(chan struct{})}
			r.open[name] = e
			r.mu.Unlock()
			return r.openFirst(e)
		}
		if !e.closing {
			e.refs++
			r.mu.Unlock()
			<-e.ready
			if e.err != nil {
				return nil, e.err
			}
			return e, nil
		}
		r.mu.Unlock()
		<-e.gone
	}
}

func (r *registry) openFirst(e *opened) (*opened, error) {
	e.Export, e.err = r.exports.Open(e.name)
	if e.err != nil {
		r.forget(e)
		close(e.ready)
		return nil, e.err
	}
	close(e.ready)
	return e, nil
}

func (r *registry) forget(e *opened) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, e.name)
	close(e.gone)
}

// release gives up a share; the last one closes the export. Clients may
// leave without a FLUSH, and like qemu-nbd what they wrote is flushed then.
func (r *registry) release(e *opened) error {
	r.mu.Lock()
	e.refs--
	e.closing = e.refs == 0
	last := e.closing
	r.mu.Unlock()
	if !last {
		return nil
	}
	defer r.forget(e)
	if err := errors.Join(e.Flush(), e.Close()); err != nil {
		return fmt.Errorf("nbd: close export %q: %w", e.name, err)
	}
	return nil
}
