package fs

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// collect settles which files of the upper of links, of those that were being
// made or unlinked when its last mount was killed, are there, and removes the
// devices of the others. It is not worth refusing a mount when that fails: an
// unfinished device that stays takes some space and is reported by a check.
func (f *FS) collect(links *linkIndex) {
	b := links.branch
	if !b.Stubs.Load() || f.opts.Pools == nil {
		return
	}
	id, err := f.files.pools.upper(b)
	if err != nil {
		f.trouble("unfinished copy-ups in %s: %v", b.Path, err)
		return
	}
	var list []*pool
	if hasPrivatePool(b) {
		list = append(list, f.files.pools.privateOf(b))
	}
	if f.opts.Pools.HasShared() {
		list = append(list, f.files.pools.sharedPool())
	}
	for _, p := range list {
		if err := p.with(func(s stub.Store) error { return collectIn(s, id, links) }); err != nil {
			f.trouble("unfinished copy-ups in %s: pool %s: %v", b.Path, p.name, err)
		}
	}
}

func hasPrivatePool(b *branches.Branch) bool {
	st, err := sys.StatAt(b.Root, whiteout.StubDir+"/"+stub.PoolDir, 0)
	return err == nil && st.IsDir()
}

// collectIn does it for one pool.
func collectIn(s stub.Store, id string, links *linkIndex) error {
	all, err := s.Devices()
	if err != nil {
		return err
	}
	var unfinished []stub.Device
	for _, d := range all {
		if d.Upper == id && d.State != "" {
			unfinished = append(unfinished, d)
		}
	}
	if len(unfinished) == 0 {
		return nil
	}
	named := map[string]bool{} // keys in stubs
	if err := findStubs(links.branch.Root, ".", named); err != nil {
		return err
	}
	if err := findStubs(links.fd, ".", named); err != nil {
		return err
	}
	var failed error
	for _, d := range unfinished {
		if named[d.Key] {
			err = s.SetState(d.Name, d.Key, "")
		} else {
			err = s.Delete(d.Name)
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// findStubs notes the keys of all stubs below name in dirfd.
func findStubs(dirfd int, name string, named map[string]bool) error {
	fd, entries, err := openListed(dirfd, name)
	if err == unix.EXDEV || err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	for _, e := range entries {
		switch {
		case e.Type == unix.DT_DIR && (e.Name == whiteout.StubDir || e.Name == whiteout.PrivateDir) && name == ".":
		case e.Type == unix.DT_DIR:
			err = findStubs(fd, e.Name, named)
		case e.Type == unix.DT_REG || e.Type == unix.DT_UNKNOWN:
			var r stub.Record
			var ok bool
			if r, ok, err = stub.Read(fd, e.Name); ok {
				named[r.Key] = true
				mendAt(fd, e.Name)
			}
			var damaged *stub.Damaged
			if errors.As(err, &damaged) {
				err = nil
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// stubsIn lists the stubs of a branch, one name of each, and counts them.
func (f *FS) stubsIn(b *branches.Branch) (list []string, err error) {
	seen := map[uint64]bool{}
	err = walkFiles(b.Root, ".", "", func(dirfd int, name, p string) error {
		var st sys.Stat
		st.Mode = unix.S_IFREG
		rec, ok, err := b.StubAt(dirfd, name, &st)
		if !ok && err == nil {
			return nil
		}
		if st, err = sys.StatAt(dirfd, name, 0); err != nil || seen[st.Ino] {
			return nil
		}
		seen[st.Ino] = true
		size, _ := f.stubSize(b, rec)
		f.settler.update(func(s *SettleStatus) { s.Files, s.Bytes = s.Files+1, s.Bytes+int64(size) })
		list = append(list, p)
		return nil
	})
	return list, err
}

// walkFiles calls visit for every regular file below name in dirfd, except in
// what belongs to the union itself.
func walkFiles(dirfd int, name, p string, visit func(dirfd int, name, p string) error) error {
	fd, entries, err := openListed(dirfd, name)
	if err == unix.EXDEV || err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	for _, e := range entries {
		below := strings.TrimPrefix(p+"/"+e.Name, "/")
		switch {
		case e.Type == unix.DT_DIR && whiteout.Reserved(e.Name) && (name != "." || e.Name != whiteout.LinkDir):
		case e.Type == unix.DT_DIR:
			err = walkFiles(fd, e.Name, below, visit)
		case e.Type == unix.DT_REG || e.Type == unix.DT_UNKNOWN:
			err = visit(fd, e.Name, below)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mendAt puts the stub name in dirfd right if its settling was interrupted. If
// that fails it is still a stub, with a longer text.
func mendAt(dirfd int, name string) {
	for _, ns := range []whiteout.Namespace{whiteout.Trusted, whiteout.User} {
		text, err := sys.GetXattr(dirfd, name, string(ns)+stub.TimesAttr)
		if err != nil {
			continue
		}
		fd, err := sys.OpenIn(dirfd, name, unix.O_RDWR, 0)
		if err != nil {
			return
		}
		if t, ok := parseTimes(string(text)); ok {
			_ = mendStub(fd, string(ns), &t)
		}
		sys.Close(fd)
		return
	}
}
