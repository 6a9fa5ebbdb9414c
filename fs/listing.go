package fs

import (
	"container/list"
	"sort"
	"sync"

	"github.com/layerfs/layerfs/branches"
)

// listed is one entry of a listing.
type listed struct {
	branches.Entry
	cookie uint64 // where a reader goes on behind it
}

// Cookies of "." and "..", and of the first entry.
const (
	cookieDot    = 1
	cookieDotDot = 2
	cookieFirst  = 3
)

// listing is what a directory shows. The kernel opens directories without telling
// us (Options.Opens), so that there is one for all readers, and nobody knows
// whether one of them is in the middle. What is in a listing therefore keeps its
// cookie when the directory is listed again; new names go to the end.
type listing struct {
	entries []listed // by cookie; replaced, never changed
	next    uint64   // cookie of the next new name
}

// after returns the entries behind the cookie off.
func after(entries []listed, off uint64) []listed {
	return entries[sort.Search(len(entries), func(i int) bool { return entries[i].cookie > off }):]
}

// renew makes l show now. Those who have begun to read it see each name that stayed once.
func (l *listing) renew(now []branches.Entry) {
	at := make(map[string]int, len(now))
	for i := range now {
		at[now[i].Name] = i
	}
	out := make([]listed, 0, len(now))
	for _, e := range l.entries {
		if i, ok := at[e.Name]; ok {
			out = append(out, listed{now[i], e.cookie})
			delete(at, e.Name)
		}
	}
	for i := range now {
		if _, ok := at[now[i].Name]; ok {
			out = append(out, listed{now[i], l.next})
			l.next++
		}
	}
	l.entries = out
}

func newListing(now []branches.Entry) *listing {
	l := &listing{entries: make([]listed, len(now)), next: cookieFirst + uint64(len(now))}
	for i := range now {
		l.entries[i] = listed{now[i], cookieFirst + uint64(i)}
	}
	return l
}

// changed notes that the names in d are others than before.
// Preconditions: d.mu is held for writing.
func (d *dirNode) changed() { d.stale = true }

// listingOf returns what the directory n shows; rewind says that a reader begins,
// who is to see what is there now. known is what was found ahead, nil for nothing.
// Preconditions: n.dir.mu is held.
func (f *FS) listingOf(n *node, rewind bool, known *answers) ([]listed, error) {
	entries, err := f.listLocked(n, rewind, known)
	if err == nil {
		f.listings.use(n, len(entries))
	}
	return entries, err
}

// listLocked is listingOf without the accounts. Preconditions: n.dir.mu is held.
func (f *FS) listLocked(n *node, rewind bool, known *answers) ([]listed, error) {
	d := n.dir
	d.listMu.Lock()
	defer d.listMu.Unlock()
	if d.dead || d.lost {
		return nil, nil
	}
	if d.list != nil && !(rewind && (d.stale || f.opts.Outside)) {
		return d.list.entries, nil
	}
	now, err := f.content(d.tree, known)
	if err != nil {
		return nil, err
	}
	if d.list == nil {
		d.list = newListing(now)
	} else {
		d.list.renew(now)
	}
	d.stale = false
	return d.list.entries, nil
}

// content lists the directory d, of which known was found ahead.
func (f *FS) content(d *branches.Dir, known *answers) ([]branches.Entry, error) {
	if known != nil {
		return known.entries, nil
	}
	return f.stack.List(d)
}

// maxListed is how many entries are kept in all listings together: some 100
// bytes each.
const maxListed = 1 << 18

// listings bounds what listings take: those that were not read for the longest time go.
// If the directory has been changed since, a reader who was in the middle of such
// a one may miss a name or see it twice.
type listings struct {
	mu    sync.Mutex // a leaf
	total int        // entries. Protected by mu.
	byUse list.List  // of *kept, the last used first. Protected by mu.
	kept  map[*node]*list.Element
}

type kept struct {
	node *node
	size int
}

// use notes that the listing of n, which has size entries, was read.
func (l *listings) use(n *node, size int) {
	for _, old := range l.account(n, size) {
		old.dir.listMu.Lock()
		old.dir.list = nil
		old.dir.listMu.Unlock()
	}
}

// account is use, and returns whose listings have to go.
func (l *listings) account(n *node, size int) (out []*node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept == nil {
		l.kept = map[*node]*list.Element{}
	}
	e := l.kept[n]
	if e == nil {
		e = l.byUse.PushFront(&kept{node: n})
		l.kept[n] = e
	}
	l.byUse.MoveToFront(e)
	l.total += size - e.Value.(*kept).size
	e.Value.(*kept).size = size
	for l.total > maxListed && l.byUse.Back() != e {
		out = append(out, l.dropLocked(l.byUse.Back()))
	}
	return out
}

// forget takes n, which nobody remembers any more, out of the accounts.
func (l *listings) forget(n *node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.kept[n]; e != nil {
		l.dropLocked(e)
	}
}

// dropLocked takes e out of the accounts. Preconditions: l.mu is held.
func (l *listings) dropLocked(e *list.Element) *node {
	k := l.byUse.Remove(e).(*kept)
	l.total -= k.size
	delete(l.kept, k.node)
	return k.node
}
