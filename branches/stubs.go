package branches

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

func (b *Branch) detectStubs() {
	st, err := sys.StatAt(b.Root, whiteout.StubDir, b.statFlags)
	b.Stubs.Store(err == nil && st.IsDir())
}

// MakeStubDir makes the directory in which the private pool of the upper b
// and its identity are.
func (b *Branch) MakeStubDir() error {
	fd, err := makeDir(b.Root, whiteout.StubDir)
	if err != nil {
		return err
	}
	sys.Close(fd)
	b.Stubs.Store(true)
	return nil
}

// StubAt reads what the file name in dirfd, of the branch b and with the
// attributes st, says about where its content is; ok is false when it is no stub.
func (b *Branch) StubAt(dirfd int, name string, st *sys.Stat) (r stub.Record, ok bool, err error) {
	if st.Type() != unix.S_IFREG || st.MountRoot || !b.Stubs.Load() && st.Size != stub.Size {
		return r, false, nil
	}
	r, ok, err = stub.Read(dirfd, name)
	if !ok && err == nil && b.Work == nil && b.Stubs.Load() && st.Size == stub.Size && !seesTrusted() && hasText(dirfd, name) {
		err = errs.New(errs.Unsupported, "its attribute cannot be read by this user: settle the branch as root: %w", unix.EIO)
	}
	return r, ok, err
}

// seesTrusted reports whether this process may read trusted. attributes.
var seesTrusted = sync.OnceValue(func() bool { return os.Geteuid() == 0 && !sys.InUserNamespace() })

// hasText reports whether a file has the text of a stub.
func hasText(dirfd int, name string) bool {
	fd, err := dirfd, error(nil)
	if name != "" {
		if fd, err = sys.OpenUntouched(dirfd, name, 0); err != nil {
			return false
		}
		defer sys.Close(fd)
	}
	buf := make([]byte, stub.Size)
	n, err := sys.PRead(fd, buf, 0)
	return err == nil && string(buf[:n]) == string(stub.Text())
}

// PrivatePool opens the pool that is private to the branch b, and makes it if
// that is asked for.
func (b *Branch) PrivatePool(pools stub.Pools, create bool) (stub.Store, error) {
	return PrivatePool(b.Root, b.Path, pools, create)
}

// PrivatePool opens the private pool of the branch that is open at root and is
// called path.
func PrivatePool(root int, path string, pools stub.Pools, create bool) (stub.Store, error) {
	name := filepath.Join(path, whiteout.StubDir, stub.PoolDir)
	fd, err := sys.OpenIn(root, whiteout.StubDir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	return pools.Private(dir, name, create)
}

// FindOrigin opens the lower file o below the branch b: the one at its path
// that has its size and modification time, and its inode number if there are
// several; else, if byPath, the one that is where it was.
func (s *Stack) FindOrigin(b *Branch, o *stub.Origin, byPath bool) (fd int, err error) {
	found, _, changed := originIn(under(s.branches, b), o)
	if found < 0 && byPath {
		if fd, err := sys.OpenPath(o.Path); err == nil {
			if _, is := IsOrigin(fd, o); is {
				return fd, nil
			}
			sys.Close(fd)
			changed = filepath.Dir(o.Path)
		}
	}
	switch {
	case found >= 0:
		return found, nil
	case changed != "":
		return -1, fmt.Errorf("the lower file %s in %s has changed since it was copied up: %w", o.Rel, changed, unix.EIO)
	}
	return -1, fmt.Errorf("the lower file %s, which was %s, is in no branch below: %w", o.Rel, o.Path, unix.EIO)
}

// Loses returns the branch that has the lower file o of a stub in b, if there is
// none below b that has it once the plan is in force; else nil.
func (p *Plan) Loses(b *Branch, o *stub.Origin) *Branch {
	fd, at, _ := originIn(under(p.stack.branches, b), o)
	if fd < 0 {
		return nil
	}
	sys.Close(fd)
	if fd, _, _ = originIn(under(p.branches, b), o); fd >= 0 {
		sys.Close(fd)
		return nil
	}
	return at
}

// under is the part of a stack that is below b.
func under(list []*Branch, b *Branch) []*Branch { return list[slices.Index(list, b)+1:] }

// originIn opens the lower file o in the first of the branches that has it; -1
// if none has. changed is a branch in which there is another file at its path.
func originIn(list []*Branch, o *stub.Origin) (found int, at *Branch, changed string) {
	found = -1
	for _, low := range list {
		fd, err := sys.OpenUntouched(low.Root, o.Rel, 0)
		if err != nil {
			continue
		}
		ino, is := IsOrigin(fd, o)
		if !is {
			changed = low.Path
		}
		if !is || found >= 0 && ino != o.Ino {
			sys.Close(fd)
			continue
		}
		if found >= 0 {
			sys.Close(found)
		}
		if found, at = fd, low; ino == o.Ino {
			break
		}
	}
	return found, at, changed
}

// IsOrigin reports whether the open file fd is the one that o describes, and
// its inode number.
func IsOrigin(fd int, o *stub.Origin) (ino uint64, is bool) {
	st, err := sys.FStat(fd)
	return st.Ino, err == nil && st.IsRegular() && int64(st.Size) == o.Size && MtimeOf(&st) == o.Mtime
}

// MtimeOf is the modification time in nanoseconds since 1970.
func MtimeOf(st *sys.Stat) int64 { return st.Mtime.Sec*1e9 + int64(st.Mtime.Nsec) }

// Stubs is how a comparison gets at the content of stubs.
type Stubs struct {
	Pools stub.Pools
	// Mountpoint is that of a live mount of the branches, "" for none: its
	// daemon has the devices of the uppers, whose files are read through it.
	Mountpoint string

	mu   sync.Mutex
	open map[*Branch]stub.Store // private pools; nil as a branch is the shared one
}

// Close lets go of all pools.
func (s *Stubs) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, store := range s.open {
		store.Close()
	}
	s.open = nil
}

func (s *Stubs) store(b *Branch, r stub.Record) (store stub.Store, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := b
	if r.Pool != stub.Private {
		key = nil
	}
	if store = s.open[key]; store != nil {
		return store, nil
	}
	switch {
	case key != nil:
		store, err = b.PrivatePool(s.Pools, false)
	case s.Pools.HasShared():
		store, err = s.Pools.Shared()
	default:
		err = errs.New(errs.Usage, "it is in a shared pool: say which, with --pool")
	}
	if err != nil {
		return nil, err
	}
	if s.open == nil {
		s.open = map[*Branch]stub.Store{}
	}
	s.open[key] = store
	return store, nil
}

// Content is the open content of a regular file.
type Content interface {
	io.ReaderAt
	io.Closer
}

// stubOf says how the content of the file o, which is a stub, is found.
type stubOf struct {
	rec     stub.Record
	through string // path by which the mount shows it, "" for none
	stubs   *Stubs
}

// readStub notes that o is a stub, if it is one, and makes o.Stat what the union
// shows. fd is the directory that o is in.
func (o *Object) readStub(fd int) error {
	b := o.part.Branch
	rec, ok, err := b.StubAt(fd, o.name, &o.Stat)
	if err != nil || !ok {
		return err
	}
	cfg := o.dir.stack.config.Stubs
	if cfg == nil {
		return errs.New(errs.Unsupported, "was copied up by blocks; `layerfs settle` makes it a plain file")
	}
	o.stub = &stubOf{rec: rec, stubs: cfg}
	if cfg.Mountpoint != "" && b.Index < o.dir.stack.config.Uppers {
		return nil // Stat is completed by showAt
	}
	store, err := cfg.store(b, rec)
	if err != nil {
		return err
	}
	dev, err := store.Info(rec.Device)
	if err == nil && dev.Key != rec.Key {
		err = errs.New(errs.Corrupt, "its device %s belongs to another file", rec.Device)
	}
	o.Stat.Size = uint64(dev.Size)
	return err
}

// showAt says by which path of the merged tree o is shown.
func (o *Object) showAt(path string) error {
	if o.stub == nil || o.stub.stubs.Mountpoint == "" || o.part.Branch.Index >= o.dir.stack.config.Uppers {
		return nil
	}
	o.stub.through = filepath.Join(o.stub.stubs.Mountpoint, path)
	fi, err := os.Lstat(o.stub.through)
	if err == nil {
		o.Stat.Size = uint64(fi.Size())
	}
	return err
}

func (o *Object) openStub() (Content, error) {
	if o.stub.through != "" {
		return os.Open(o.stub.through)
	}
	store, err := o.stub.stubs.store(o.part.Branch, o.stub.rec)
	if err != nil {
		return nil, err
	}
	dev, err := store.Info(o.stub.rec.Device)
	if err != nil {
		return nil, err
	}
	c := &stubContent{fd: -1}
	var origin io.ReaderAt
	if dev.Origin != nil && dev.Origin.Valid > 0 {
		if c.fd, err = o.dir.stack.FindOrigin(o.part.Branch, dev.Origin, true); err != nil {
			return nil, err
		}
		origin = fdReader(c.fd)
	}
	if c.Blocks, err = store.Open(dev.Name, origin, false); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// stubContent is an open device and its origin.
type stubContent struct {
	stub.Blocks
	fd int // -1 for none
}

func (c *stubContent) Close() (err error) {
	if c.Blocks != nil {
		err = c.LetGo()
	}
	if c.fd >= 0 {
		sys.Close(c.fd)
	}
	return err
}

// fdReader is an open file.
type fdReader int

// ReadAt implements io.ReaderAt.
func (fd fdReader) ReadAt(p []byte, off int64) (int, error) { return sys.ReadFullAt(int(fd), p, off) }

// Close ends the use.
func (fd fdReader) Close() error { return sys.Close(int(fd)) }
