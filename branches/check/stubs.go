package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// stubs is what is known of the files that were copied up by blocks.
type stubs struct {
	id      string                 // of the upper, "" for none
	private stub.Store             // nil when there is none, or it cannot be opened
	shared  stub.Store             // the same
	failed  error                  // why the private pool cannot be opened
	devices map[string]stub.Device // of the private pool, by name
	others  map[string]stub.Device // of this upper, in the shared pool
	named   map[string]bool        // keys that stubs have
}

// openStubs opens the pools of the branch.
func (c *checker) openStubs(pools stub.Pools) {
	c.stubs.named = map[string]bool{}
	dir, err := sys.OpenDir(c.u.Root, whiteout.StubDir)
	if err != nil {
		return
	}
	c.stubs.id = stub.PeekIdentity(dir)
	st, err := sys.StatAt(dir, stub.PoolDir, 0)
	sys.Close(dir)
	if pools == nil {
		return
	}
	if err == nil && st.IsDir() {
		if c.stubs.private, err = branches.PrivatePool(c.u.Root, c.u.Path, pools, false); err == nil {
			c.stubs.devices, err = devices(c.stubs.private, func(stub.Device) bool { return true })
		}
		if c.stubs.failed = err; err != nil {
			c.found("stub-pool", whiteout.StubDir+"/"+stub.PoolDir, fmt.Sprintf("the private pool cannot be opened, so no stub can be read: %v", err), "", nil)
		}
	}
	if !pools.HasShared() {
		return
	}
	if c.stubs.shared, err = pools.Shared(); err == nil {
		c.stubs.others, err = devices(c.stubs.shared, func(d stub.Device) bool { return d.Upper == c.stubs.id })
	}
	if err != nil {
		c.note("the shared pool cannot be opened: %v", err)
	}
}

func devices(s stub.Store, which func(stub.Device) bool) (map[string]stub.Device, error) {
	list, err := s.Devices()
	out := map[string]stub.Device{}
	for _, d := range list {
		if which(d) {
			out[d.Name] = d
		}
	}
	return out, err
}

func (c *checker) closeStubs() {
	for _, s := range []stub.Store{c.stubs.private, c.stubs.shared} {
		if s != nil {
			s.Close()
		}
	}
}

// stub examines the file name in fd, which has the attribute attr.
func (c *checker) stub(fd int, name, path, attr string) {
	v, err := sys.GetXattr(fd, name, attr)
	if err != nil {
		c.unreadable(path, err)
		return
	}
	r, ok := stub.Parse(string(v))
	if !ok {
		c.found("stub-damaged", path, fmt.Sprintf("%q in %s names no device, so the file cannot be read", v, attr), "", nil)
		return
	}
	c.stubs.named[r.Key] = true
	ns := strings.TrimSuffix(attr, stub.Attr)
	if _, err := sys.GetXattrInto(fd, name, ns+stub.TimesAttr, nil); err == nil {
		c.found("interrupted-settle", path, "its settling was interrupted: it is a stub still, with a longer text; the next mount puts that right", "", nil)
	}
	store, list := c.stubs.private, c.stubs.devices
	if r.Pool != stub.Private {
		store, list = c.stubs.shared, c.stubs.others
	}
	switch d, known := list[r.Device]; {
	case store == nil && r.Pool != stub.Private:
		c.note("%s: it is in a shared pool, which is not known (--pool)", shown(path))
	case store == nil || c.stubs.failed != nil:
	case !known:
		c.found("stub-lost", path, "its device "+r.Device+" is not in the pool, so the file cannot be read", "", nil)
	case d.Key != r.Key:
		c.found("stub-lost", path, "its device "+r.Device+" belongs to another file, so it cannot be read", "", nil)
	default:
		c.origin(store, path, d)
	}
}

// origin examines whether the lower file of a device is there.
func (c *checker) origin(store stub.Store, path string, d stub.Device) {
	o := d.Origin
	if o == nil || o.Valid == 0 {
		return
	}
	place, isThere := c.whereOrigin(o)
	switch {
	case isThere && c.low == nil, isThere && place.Path == o.Path && place.Rel == o.Rel:
		return
	case !isThere && c.low == nil:
		c.note("%s: its lower file is not at %s any more; name the branches below (--lower) to have it looked for", shown(path), o.Path)
		return
	case !isThere:
		c.found("stub-origin", path, fmt.Sprintf("its lower file %s (%d bytes) is in no branch below as it was, so the file cannot be read", o.Path, o.Size), "", nil)
		return
	}
	// A mount finds it by its path in the branch; the pool's own commands do not.
	wrong := fmt.Sprintf("its lower file was %s and is %s now", o.Path, place.Path)
	if !c.rebind {
		if place.Rel == o.Rel {
			c.note("%s: %s; `check --rebind` tells the pool", shown(path), wrong)
			return
		}
		c.found("stub-origin", path, wrong+": `check --rebind` tells the pool", "", nil)
		return
	}
	f := Finding{Kind: "stub-origin", Path: shown(path), Wrong: wrong, Repair: "the pool was told"}
	if err := store.SetOrigin(d.Name, place); err != nil {
		f.Error = err.Error()
		c.Left++
	} else {
		f.Repaired = true
	}
	c.Findings = append(c.Findings, f)
}

// whereOrigin looks for a lower file where it was, at its path in the branches
// below, and then for the only file of its name, size and modification time there.
func (c *checker) whereOrigin(o *stub.Origin) (stub.Origin, bool) {
	if c.low == nil {
		fd, err := sys.OpenPath(o.Path)
		if err != nil {
			return *o, false
		}
		defer sys.Close(fd)
		_, is := branches.IsOrigin(fd, o)
		return *o, is
	}
	if place, ok := c.originAt(o, o.Rel); ok {
		return place, true
	}
	name := o.Rel[strings.LastIndexByte(o.Rel, '/')+1:]
	var found []stub.Origin
	for _, b := range c.low.Branches() {
		found = append(found, findByName(b, b.Root, ".", "", name, o)...)
	}
	if len(found) == 1 {
		return found[0], true
	}
	return *o, false
}

// originAt looks for o at the path rel of the branches below.
func (c *checker) originAt(o *stub.Origin, rel string) (stub.Origin, bool) {
	for _, b := range c.low.Branches() {
		if place, ok := originIn(b, b.Root, rel, rel, o); ok {
			return place, true
		}
	}
	return *o, false
}

// originIn reports whether name in dirfd, whose path in b is rel, is the file o.
func originIn(b *branches.Branch, dirfd int, name, rel string, o *stub.Origin) (stub.Origin, bool) {
	fd, err := sys.OpenUntouched(dirfd, name, 0)
	if err != nil {
		return *o, false
	}
	defer sys.Close(fd)
	ino, is := branches.IsOrigin(fd, o)
	place := *o
	place.Path, place.Rel, place.Ino = b.Path+"/"+rel, rel, ino
	return place, is
}

// findByName looks for files called name that are o, below the directory dir of dirfd.
func findByName(b *branches.Branch, dirfd int, dir, rel, name string, o *stub.Origin) (found []stub.Origin) {
	fd, err := sys.OpenIn(dirfd, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil
	}
	defer sys.Close(fd)
	entries, err := sys.ReadDir(fd)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		p := strings.TrimPrefix(rel+"/"+e.Name, "/")
		switch {
		case e.Type == unix.DT_DIR:
			found = append(found, findByName(b, fd, e.Name, p, name, o)...)
		case e.Name == name:
			if place, ok := originIn(b, fd, name, p, o); ok {
				found = append(found, place)
			}
		}
	}
	return found
}

// checkDevices reports devices that no stub names.
func (c *checker) checkDevices() {
	if len(c.u.Users) > 0 {
		return // files that are open without a name have them rightly
	}
	for _, pool := range []struct {
		store stub.Store
		list  map[string]stub.Device
	}{{c.stubs.private, c.stubs.devices}, {c.stubs.shared, c.stubs.others}} {
		for _, name := range sortedNames(pool.list) {
			d := pool.list[name]
			switch {
			case c.stubs.named[d.Key]:
			case d.State != "" && d.Upper == c.stubs.id:
				c.found("unfinished-device", ".", "device "+name+" is of a file that was being made or unlinked when a mount was killed", "removed, as the next mount would",
					func() error { return pool.store.Delete(name) })
			default:
				c.found("orphan-device", ".", fmt.Sprintf("no stub names device %s, which has %d bytes of its own: put the stub back, or remove it with `layerfs thin rm`", name, d.Mapped), "", nil)
			}
		}
	}
}

func sortedNames(list map[string]stub.Device) []string { return slices.Sorted(maps.Keys(list)) }
