package fs

import (
	"path/filepath"
	"sync"
	"time"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// pool is a store of stubs' content. It is opened when somebody needs it, and
// closed when nobody has for a while.
type pool struct {
	name string                                // for messages. Immutable.
	open func(create bool) (stub.Store, error) // immutable

	mu    sync.Mutex
	store stub.Store // nil while closed. Protected by mu.
	users int        // protected by mu
	used  time.Time  // when the last user went. Protected by mu.
}

// use returns the open store; done must be called in the end.
func (p *pool) use(create bool) (stub.Store, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.store == nil {
		s, err := p.open(create)
		if err != nil {
			return nil, err
		}
		p.store = s
	}
	p.users++
	return p.store, nil
}

func (p *pool) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users--
	p.used = time.Now()
}

// with runs fn on the open store.
func (p *pool) with(fn func(stub.Store) error) error {
	s, err := p.use(false)
	if err != nil {
		return err
	}
	defer p.done()
	return fn(s)
}

// closeIdle closes the store if it has not been used for idle. It reports
// whether the store is closed.
func (p *pool) closeIdle(idle time.Duration) (closed bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.store == nil {
		return true, nil
	}
	if p.users > 0 || time.Since(p.used) < idle {
		return false, nil
	}
	err = p.store.Close()
	p.store = nil
	return true, err
}

// pools are the stores of a mount.
type pools struct {
	opener stub.Pools // nil when this mount cannot open any. Immutable.

	mu      sync.Mutex
	private map[*branches.Branch]*pool
	shared  *pool
	ids     map[*branches.Branch]string // of uppers
}

// of returns the pool that a stub in b names.
func (ps *pools) of(b *branches.Branch, r stub.Record) (*pool, error) {
	if ps.opener == nil {
		return nil, errNoPools
	}
	if r.Pool == stub.Private {
		return ps.privateOf(b), nil
	}
	if !ps.opener.HasShared() {
		return nil, errNoShared
	}
	return ps.sharedPool(), nil
}

func (ps *pools) privateOf(b *branches.Branch) *pool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.private[b]
	if p == nil {
		p = &pool{
			name: filepath.Join(b.Path, whiteout.StubDir, stub.PoolDir),
			open: func(create bool) (stub.Store, error) { return b.PrivatePool(ps.opener, create) },
		}
		if ps.private == nil {
			ps.private = map[*branches.Branch]*pool{}
		}
		ps.private[b] = p
	}
	return p
}

func (ps *pools) sharedPool() *pool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.shared == nil {
		ps.shared = &pool{name: "the shared pool", open: func(bool) (stub.Store, error) { return ps.opener.Shared() }}
	}
	return ps.shared
}

// forNew returns the pool to which new files of the upper b go, open, and
// what their records call it.
func (ps *pools) forNew(b *branches.Branch) (p *pool, s stub.Store, word string, err error) {
	if ps.opener == nil {
		return nil, nil, "", errNoPools
	}
	if ps.opener.HasShared() {
		p = ps.sharedPool()
		if s, err = p.use(false); err != nil {
			return nil, nil, "", err
		}
		return p, s, s.ID(), nil
	}
	p = ps.privateOf(b)
	s, err = p.use(true)
	return p, s, stub.Private, err
}

// upper returns the random id of the upper b, and makes the directory for it
// when there is none.
func (ps *pools) upper(b *branches.Branch) (id string, err error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if id := ps.ids[b]; id != "" {
		return id, nil
	}
	err = sys.KeepTimes(b.Root, func() error { return b.MakeStubDir() })
	if err != nil {
		return "", err
	}
	dir, err := sys.OpenDir(b.Root, whiteout.StubDir)
	if err != nil {
		return "", err
	}
	defer sys.Close(dir)
	if id, err = stub.Identity(b.Root, dir); err != nil {
		return "", err
	}
	if ps.ids == nil {
		ps.ids = map[*branches.Branch]string{}
	}
	ps.ids[b] = id
	return id, nil
}

// all returns every pool that was ever used.
func (ps *pools) all() []*pool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var out []*pool
	for _, p := range ps.private {
		out = append(out, p)
	}
	if ps.shared != nil {
		out = append(out, ps.shared)
	}
	return out
}

// empty reports whether the private pool of the upper b, if there is one, has
// no device: not even one whose stub somebody may have moved away.
func (ps *pools) empty(b *branches.Branch) bool {
	if !hasPrivatePool(b) {
		return true
	}
	list := []stub.Device{{}}
	err := ps.privateOf(b).with(func(s stub.Store) (err error) { list, err = s.Devices(); return err })
	return err == nil && len(list) == 0
}
