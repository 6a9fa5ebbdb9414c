package fs

import (
	"encoding/binary"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// watcher notices what is changed in the branches behind the mount's back
// (AUFS's udba=notify): every directory that the kernel remembers is watched in
// all its branches but those that are "rr". What has changed is looked up again
// and the kernel is told of the difference; our own changes make none.
//
// watcher.mu is a leaf.
type watcher struct {
	fs     *FS
	fd     int      // inotify. Immutable.
	events *os.File // the same, for reading

	mu    sync.Mutex
	nodes map[int32]*node   // by watch. Protected by mu.
	parts map[*node][]int32 // watches of a directory. Protected by mu.
}

const watched = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ATTRIB | unix.IN_MODIFY | unix.IN_ONLYDIR

func newWatcher(f *FS) (*watcher, error) {
	fd, err := sys.Inotify()
	if err != nil {
		return nil, err
	}
	w := &watcher{fs: f, fd: fd, events: os.NewFile(uintptr(fd), "inotify"), nodes: map[int32]*node{}, parts: map[*node][]int32{}}
	go w.run()
	return w, nil
}

// watch watches the directory n in all branches in which it is. When the system
// allows no more watches the mount goes on as with udba=reval. A nil watcher
// does nothing.
func (w *watcher) watch(n *node) {
	if w == nil {
		return
	}
	for _, p := range n.dir.tree.Parts() {
		if p.Branch.Mode == branches.RR {
			continue
		}
		if err := w.watchPart(n, p); err == unix.ENOSPC || err == unix.ENOMEM {
			if w.fs.revalidate() {
				w.fs.opts.Log.Printf("no more directories can be watched (fs.inotify.max_user_watches): going on with udba=reval")
			}
		}
	}
}

func (w *watcher) watchPart(n *node, p *branches.Part) error {
	at, err := acquire(n.dir.tree, p, "")
	if err != nil {
		return err
	}
	defer at.release()
	wd, err := sys.Watch(w.fd, at.fd, watched)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.nodes[wd] != n {
		w.nodes[wd] = n
		w.parts[n] = append(w.parts[n], wd)
	}
	return nil
}

// forget ends the watches of n.
func (w *watcher) forget(n *node) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, wd := range w.parts[n] {
		if w.nodes[wd] == n {
			delete(w.nodes, wd)
			sys.Unwatch(w.fd, wd)
		}
	}
	delete(w.parts, n)
}

func (w *watcher) close() {
	if w != nil {
		w.events.Close()
	}
}

func (w *watcher) run() {
	buf := make([]byte, 64<<10)
	for {
		n, err := w.events.Read(buf)
		if err != nil {
			return
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(rest[12:]))
			w.event(int32(binary.NativeEndian.Uint32(rest)), binary.NativeEndian.Uint32(rest[4:]),
				strings.TrimRight(string(rest[unix.SizeofInotifyEvent:size]), "\x00"))
			rest = rest[size:]
		}
	}
}

func (w *watcher) event(wd int32, mask uint32, name string) {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		w.fs.revalidate() // nobody knows what was missed
		return
	}
	w.mu.Lock()
	n := w.nodes[wd]
	if mask&unix.IN_IGNORED != 0 {
		delete(w.nodes, wd)
	}
	w.mu.Unlock()
	if n != nil && mask&unix.IN_IGNORED == 0 {
		w.fs.changedOutside(n, name, mask)
	}
}

// changedOutside looks again at name in the directory n, or at n itself for "",
// and tells the kernel what it does not know.
func (f *FS) changedOutside(n *node, name string, mask uint32) {
	p := f.notify.Load()
	if p == nil {
		return
	}
	const names = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO
	if mask&names != 0 || name == "" {
		_ = (*p).InvalInode(n.id, 0, 0)
	}
	if whiteout.Reserved(name) {
		if name == whiteout.OpaqueFile {
			f.lookAgain(n)
			return
		}
		name = branches.HiddenBy(name)
	}
	if name == "" {
		return
	}
	switch child, same := f.known(n, name); {
	case !same:
		_ = (*p).InvalEntry(n.id, name)
	case mask&unix.IN_ATTRIB != 0:
		_ = (*p).InvalInode(child.id, -1, 0)
	case mask&unix.IN_MODIFY != 0 && !child.isWritten():
		_ = (*p).InvalInode(child.id, 0, 0)
	}
}

// lookAgain has the kernel look up the directory n anew, of which nobody can
// say what has changed.
func (f *FS) lookAgain(n *node) {
	n.mu.Lock()
	names := n.names
	n.mu.Unlock()
	if p := f.notify.Load(); len(names) > 0 {
		_ = (*p).InvalEntry(names[0].dir.id, names[0].name)
	}
}

// isWritten reports whether somebody has n open for writing through the mount.
func (n *node) isWritten() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.writes > 0
}

// known reports whether name in n stands for the node that the kernel would
// still find there, and which one. A directory that has got other parts is
// brought up to date.
func (f *FS) known(n *node, name string) (child *node, same bool) {
	f.gate.Enter()
	defer f.gate.Leave()
	n.dir.mu.RLock()
	defer n.dir.mu.RUnlock()
	if n.dir.dead || n.dir.lost {
		return nil, true
	}
	res, err := f.stack.Lookup(n.dir.tree, name)
	if err != nil || res.Kind == branches.NotFound {
		return nil, false
	}
	child = f.table.peek(f.keyOf(&res))
	if child == nil {
		return nil, false
	}
	if child.isDir() {
		f.refreshOutside(child, &res)
	}
	child.mu.Lock()
	defer child.mu.Unlock()
	for _, p := range child.names {
		if p.dir == n && p.name == name {
			return child, true
		}
	}
	return nil, false
}

// refreshOutside brings the directory n, which a lookup has found again, up to
// date with what others have done to the branches.
// Preconditions: the mu of the directory that n lies in is held.
func (f *FS) refreshOutside(n *node, res *branches.Resolution) {
	if !f.opts.Outside || res.Kind != branches.Directory {
		return
	}
	came, went := n.dir.tree.Refresh(res.Dir)
	f.stack.CloseParts(went)
	if len(came)+len(went) > 0 {
		f.watcher.watch(n)
		if p := f.notify.Load(); p != nil {
			go func() { _ = (*p).InvalInode(n.id, 0, 0) }()
		}
	}
}

// revalidate has the kernel ask again and again from now on; false if it did already.
func (f *FS) revalidate() bool {
	return f.timeout.Swap(int64(Revalidate)) != int64(Revalidate)
}
