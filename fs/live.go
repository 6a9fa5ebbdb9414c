package fs

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/errs"
)

// shutTime is how long a change of the branches keeps requests waiting for
// those that are under way, at most.
const shutTime = time.Second

// InUse says that something of a branch is in use.
type InUse struct {
	Branch string `json:"branch"`
	Path   string `json:"path"` // in the mount
	Ino    uint64 `json:"ino"`  // as stat shows it
	Open   bool   `json:"open"` // else only remembered by the kernel: nobody knows whether it is used
}

// ChangeBranches changes the branches of the live mount, all changes or, with an
// error, none. A branch of which a file is open cannot go; the users are
// returned. What the kernel has in its caches is brought up to date before it returns.
func (f *FS) ChangeBranches(changes []branches.Change) ([]InUse, error) {
	if f.opts.Passthrough {
		return nil, errs.New(errs.Unsupported, "the branches of a mount with passthrough cannot be changed: the kernel has files of them open")
	}
	f.changeMu.Lock()
	defer f.changeMu.Unlock()
	plan, err := f.stack.Plan(changes)
	if err != nil {
		return nil, err
	}
	indexes, err := f.openIndexes(plan)
	if err != nil {
		plan.Abort()
		return nil, err
	}
	abort := func() {
		closeIndexes(indexes)
		plan.Abort()
	}
	if !f.gate.shut(shutTime) {
		abort()
		return nil, errs.New(errs.Busy, "requests are under way that take long: try again")
	}
	if users := f.usersOf(plan); len(users) > 0 {
		f.gate.open()
		abort()
		return users, errs.New(errs.Busy, "branch %s is in use", users[0].Branch)
	}
	if err := f.keepOrigins(plan); err != nil {
		f.gate.open()
		abort()
		return nil, err
	}
	stale, err := f.commit(plan, indexes)
	f.gate.open()
	f.announce(stale)
	if err != nil {
		err = fmt.Errorf("the branches are changed, but not all could be looked at again: %w", err)
	}
	return nil, err
}

// openIndexes opens the link indexes of the branches that will be writable, and
// completes what an earlier daemon has left undone there.
func (f *FS) openIndexes(plan *branches.Plan) (map[*branches.Branch]*linkIndex, error) {
	out := map[*branches.Branch]*linkIndex{}
	for b, as := range plan.Promoted() {
		l, err := f.adoptUpper(as)
		if err != nil {
			closeIndexes(out)
			return nil, err
		}
		out[b] = l
	}
	return out, nil
}

func closeIndexes(list map[*branches.Branch]*linkIndex) {
	for _, l := range list {
		l.close()
	}
}

// Remembered lists what the kernel remembers of the branches that changes
// would remove: a process may have its working directory there, which no file
// system hears of.
func (f *FS) Remembered(changes []branches.Change) ([]InUse, error) {
	f.changeMu.Lock()
	defer f.changeMu.Unlock()
	plan, err := f.stack.Plan(changes)
	if err != nil {
		return nil, err
	}
	defer plan.Abort()
	f.gate.Enter()
	defer f.gate.Leave()
	return f.nodesIn(func(n *node) bool { return f.onlyIn(n, plan.Removed) }), nil
}

// usersOf returns what keeps the plan from being put into force.
// Preconditions: the gate is shut.
func (f *FS) usersOf(plan *branches.Plan) []InUse {
	demoted := plan.Demoted()
	return f.nodesIn(func(n *node) bool {
		return n.opens > 0 && f.onlyIn(n, plan.Removed) || n.writes > 0 && slices.Contains(demoted, n.home)
	})
}

// onlyIn reports whether n is in one of the branches, and, if it is a
// directory, in no other. Preconditions: n.mu is held.
func (f *FS) onlyIn(n *node, list []*branches.Branch) bool {
	if !n.isDir() {
		return (n.home != nil || n.low.part != nil) && slices.Contains(list, f.branchOfLocked(n))
	}
	for _, p := range n.dir.tree.Parts() {
		if !slices.Contains(list, p.Branch) {
			return false
		}
	}
	return n.id != rootID && len(n.dir.tree.Parts()) > 0
}

// nodesIn lists the nodes for which want, called with n.mu held, is true.
func (f *FS) nodesIn(want func(*node) bool) []InUse {
	var out []InUse
	for _, n := range f.table.all() {
		n.mu.Lock()
		if want(n) {
			out = append(out, InUse{f.branchOfLocked(n).Path, pathLocked(n), f.showIno(n.ino), n.opens > 0})
		}
		n.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b InUse) int { return cmp.Compare(a.Path, b.Path) })
	return out
}

// pathLocked returns a path of n in the mount. Preconditions: n.mu is held.
func pathLocked(n *node) string {
	switch {
	case n.isDir():
		return n.dir.tree.Path()
	case len(n.names) == 0:
		return "(deleted)"
	}
	dir := n.names[0].dir.dir.tree.Path()
	if dir == "/" {
		dir = ""
	}
	return dir + "/" + n.names[0].name
}

// stale is what the kernel has to be told after a change of the branches.
type stale struct {
	names []place // that lead to something else, or may
	nodes []*node // whose listings and attributes are out of date
}

// commit puts the plan into force, with the indexes of what will be writable.
// Preconditions: the gate is shut.
func (f *FS) commit(plan *branches.Plan, indexes map[*branches.Branch]*linkIndex) (*stale, error) {
	f.ahead.flush()
	r := &refresh{f: f, plan: plan, out: &stale{}}
	r.collect()
	plan.Commit()
	for b, l := range indexes {
		l.branch = b
		f.indexes[b] = l
	}
	r.root()
	for b, l := range f.indexes {
		if !b.Writable() || slices.Contains(plan.Removed, b) {
			l.close()
			delete(f.indexes, b)
		}
	}
	return r.out, cmp.Or(r.err, plan.Drop())
}

// announce tells the kernel what is out of date.
func (f *FS) announce(s *stale) {
	p := f.notify.Load()
	if p == nil {
		return
	}
	for _, name := range s.names {
		_ = (*p).InvalEntry(name.dir.id, name.name)
	}
	for _, n := range s.nodes {
		_ = (*p).InvalInode(n.id, 0, 0)
	}
}

// refresh brings all nodes up to date with other branches.
type refresh struct {
	f    *FS
	plan *branches.Plan
	dirs map[*node][]*node // directories by the directory that they lie in
	file map[*node][]*node // files by each directory in which they have a name
	out  *stale
	err  error
}

// collect finds out which node lies where.
func (r *refresh) collect() {
	r.dirs, r.file = map[*node][]*node{}, map[*node][]*node{}
	for _, n := range r.f.table.all() {
		for _, p := range n.names {
			if n.isDir() {
				r.dirs[p.dir] = append(r.dirs[p.dir], n)
			} else if list := r.file[p.dir]; len(list) == 0 || list[len(list)-1] != n {
				r.file[p.dir] = append(list, n)
			}
		}
	}
}

func (r *refresh) fail(what string, err error) {
	if r.err == nil {
		r.err = fmt.Errorf("%s: %w", what, err)
	}
}

func (r *refresh) root() {
	n := r.f.table.get(rootID)
	before := n.dir.tree.Parts()
	if err := r.f.stack.RefreshRoot(); err != nil {
		r.fail("the root directory", err)
	}
	r.f.watcher.watch(n)
	r.within(n, before, true)
}

// within brings what lies in n up to date; before are the parts that n had.
func (r *refresh) within(n *node, before []*branches.Part, changed bool) {
	after := n.dir.tree.Parts()
	touched := changed || r.concerns(before) || r.concerns(after)
	if touched {
		r.names(n, before, after)
		r.out.nodes = append(r.out.nodes, n)
		n.dir.changed()
		for _, c := range r.file[n] {
			r.checkFile(n, c)
		}
	}
	for _, c := range r.dirs[n] {
		if touched || c.dir.tree.Redirected() {
			r.checkDir(n, c)
		} else {
			r.within(c, c.dir.tree.Parts(), false)
		}
	}
	r.f.stack.CloseParts(gone(before, after))
}

func (r *refresh) concerns(parts []*branches.Part) bool {
	return slices.ContainsFunc(parts, func(p *branches.Part) bool { return r.plan.Concerned(p.Branch) })
}

// gone returns the parts of before that are not among after.
func gone(before, after []*branches.Part) []*branches.Part {
	var out []*branches.Part
	for _, p := range before {
		if !slices.Contains(after, p) {
			out = append(out, p)
		}
	}
	return out
}

// names notes the names in n that may lead to something else than before, or
// to something at all: those in parts that came, went or count otherwise.
// Names of nodes that stay what they are must not be told to the kernel, which
// would take mounts away that are on them.
func (r *refresh) names(n *node, before, after []*branches.Part) {
	parts := append(gone(before, after), gone(after, before)...)
	for _, p := range after {
		if r.plan.Concerned(p.Branch) && !slices.Contains(parts, p) {
			parts = append(parts, p)
		}
	}
	known := map[string]bool{}
	for _, list := range []map[*node][]*node{r.dirs, r.file} {
		for _, c := range list[n] {
			for _, p := range c.names {
				if p.dir == n {
					known[p.name] = true // settled by checkFile or checkDir
				}
			}
		}
	}
	for _, p := range parts {
		names, err := r.f.stack.RawNames(n.dir.tree, p)
		if err != nil { // a part that went may not be there any more
			continue
		}
		for _, name := range names {
			if !known[name] {
				known[name] = true
				r.out.names = append(r.out.names, place{dir: n, name: name})
			}
		}
	}
}

// checkFile settles for each name of the file c in n whether it still leads to c.
func (r *refresh) checkFile(n, c *node) {
	for _, p := range slices.Clone(c.names) {
		if p.dir != n {
			continue
		}
		res, err := r.f.stack.Lookup(n.dir.tree, p.name)
		if err != nil {
			r.fail(n.dir.tree.Path()+"/"+p.name, err)
		}
		if err == nil && res.Kind == branches.File && r.same(c, &res) {
			r.stay(c, n, p.name, &res)
			continue
		}
		r.loseName(c, p)
	}
}

// same reports whether a lookup has found c.
func (r *refresh) same(c *node, res *branches.Resolution) bool {
	return r.f.table.peek(r.f.keyOf(res)) == c
}

// stay brings up to date where the file c is, which kept the name.
func (r *refresh) stay(c, dir *node, name string, res *branches.Resolution) {
	was := r.f.branchOfLocked(c)
	switch {
	case res.Where.Branch != was: // another name of a copied-up file
	case res.Home != nil:
		c.home, c.low = res.Home, lowFile{}
		if c.back != nil && c.back.stub != nil && !c.back.stub.write { // its device is open to be read only
			c.back.release()
			c.back = nil
		}
		r.f.addPlaceLocked(c, place{dir, name, c.home})
	default:
		if c.home != nil {
			c.home, c.link, c.adj = nil, "", 0
			for i := range c.names {
				c.names[i].in = nil
			}
			if c.back != nil && c.back.writable { // those who read go on
				c.back.release()
				c.back = nil
			}
		}
		c.low = lowFile{dir.dir.tree, res.Where, name}
	}
}

// loseName takes the name p, which leads elsewhere now, from the file c. Who has
// it open notices nothing: that it was in a removed branch was ruled out. One that
// may still be copied up keeps the name, which says where the copy belongs, though
// something in a branch above hides it there.
func (r *refresh) loseName(c *node, p place) {
	r.out.names = append(r.out.names, p)
	if c.writes > 0 && c.home == nil {
		return
	}
	if r.f.mayBeOpenLocked(c) {
		if err := r.f.pinLocked(c); err != nil {
			r.fail(p.name, err)
		}
	}
	r.f.removePlaceLocked(c, p.dir, p.name)
	if b := r.f.branchOfLocked(c); len(c.names) == 0 && slices.Contains(r.plan.Removed, b) {
		r.f.forgetKeys(c)
		c.home, c.low = nil, lowFile{}
	}
}

// checkDir brings the directory c in n up to date, or gives it up.
func (r *refresh) checkDir(n, c *node) {
	p := c.names[0]
	res, err := r.f.stack.Lookup(n.dir.tree, p.name)
	if err != nil {
		r.fail(c.dir.tree.Path(), err)
	}
	if err != nil || res.Kind != branches.Directory || c.fixed != nil != (len(res.Dir.Parts()) == 0) {
		r.loseDir(c)
		return
	}
	before := c.dir.tree.Parts()
	if key := r.f.keyOf(&res); r.f.table.peek(key) != c {
		r.f.table.rekey(c, key)
	}
	came, went := c.dir.tree.Refresh(res.Dir)
	c.dir.acl = aclUnknown
	r.f.watcher.watch(c)
	r.within(c, before, len(came)+len(went) > 0)
}

// loseDir gives up the directory c, whose name leads elsewhere now, and all in it.
func (r *refresh) loseDir(c *node) {
	for _, d := range r.dirs[c] {
		r.loseDir(d)
	}
	for _, n := range r.file[c] {
		for _, p := range slices.Clone(n.names) {
			if p.dir == c {
				r.loseName(n, p)
			}
		}
	}
	r.out.names = append(r.out.names, c.names[0])
	r.f.removePlaceLocked(c, c.names[0].dir, c.names[0].name)
	r.f.forgetKeys(c)
	c.dir.lost = true
	if r.concerns(c.dir.tree.Parts()) {
		c.dir.tree.Lose()
	}
}
