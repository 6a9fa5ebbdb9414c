package fs

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// A redirected directory becomes a plain one when all that it shows has been
// copied up: then it is made opaque instead. That everything has been is certain
// only while nobody can rename something out of the branches below into it, so the
// gate is shut for a last look and for the step itself. Nothing that the mount
// shows changes by it, on disk neither: killed at any moment, the tree is the same.

// settleDirs makes the redirected directories of the upper plain ones.
func (f *FS) settleDirs(stopped func() bool) error {
	f.gate.Enter()
	b, several := f.stack.Upper(), f.stack.Several()
	f.gate.Leave()
	// In the dialect xattr one attribute says both that a directory is opaque and
	// that it has whiteouts: it cannot be closed in one step.
	if b == nil || several || b.Format.Dialect == whiteout.Xattr {
		return nil
	}
	list, err := redirected(b)
	if err != nil {
		return fmt.Errorf("looking for renamed directories in %s: %w", b.Path, err)
	}
	for _, p := range slices.Backward(list) { // what lies in another first
		if stopped() {
			return errStopped
		}
		f.settler.update(func(s *SettleStatus) { s.Path = p })
		done, err := f.settleDir(b, p)
		f.settler.update(func(s *SettleStatus) {
			if done {
				s.Directories++
			}
			if err != nil {
				s.Failed = append(s.Failed, fmt.Sprintf("%s: %v", p, err))
			}
		})
	}
	return nil
}

// shutTries is how often requests that take long are waited for.
const shutTries = 3

// settleDir makes the directory at p in b a plain one. It is left as it is, and
// done is false, if it has been renamed meanwhile, or if what it continues is in
// no branch: that may come again.
func (f *FS) settleDir(b *branches.Branch, p string) (done bool, err error) {
	if err := f.fillDir(p, false); err != nil && !isGone(err) {
		return false, err
	}
	f.changeMu.Lock()
	defer f.changeMu.Unlock()
	for try := 0; !f.gate.shut(shutTime); try++ {
		if try == shutTries {
			return false, fmt.Errorf("requests are under way that take long: %w", unix.EBUSY)
		}
	}
	s, err := f.plainDir(b, p)
	f.gate.open()
	if s == nil {
		return false, err
	}
	f.announce(s)
	return true, err
}

// plainDir takes the redirect of the directory at p in b away, after what is
// not yet copied up of what it shows. It returns what the kernel has to be told,
// nil if nothing was done. Preconditions: the gate is shut.
func (f *FS) plainDir(b *branches.Branch, p string) (*stale, error) {
	n, err := f.nodeAt(p)
	if isGone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.table.forget(n.id, 1)
	if !n.isDir() || n.dir.tree.Part(b) == nil || !n.dir.tree.Redirected() || len(n.dir.tree.Below(b)) == 0 {
		return nil, nil
	}
	if err := f.fillDir(p, true); err != nil {
		return nil, err
	}
	if err := closeDir(b, p); err != nil {
		return nil, err
	}
	f.ahead.flush()
	r := &refresh{f: f, plan: &branches.Plan{}, out: &stale{}}
	r.collect()
	r.checkDir(n.names[0].dir, n)
	if r.err == nil {
		r.err = dropWhiteouts(b.Root, p)
	}
	return r.out, r.err
}

// isGone reports whether something is not there any more, or another thing is.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ESTALE)
}

// Redirects counts the redirected directories of the upper.
func (f *FS) Redirects() int {
	b := f.stack.Upper()
	if b == nil {
		return 0
	}
	list, _ := redirected(b) // what cannot be read is reported by a check
	return len(list)
}

// redirected lists the directories of b that have a redirect.
func redirected(b *branches.Branch) (list []string, err error) {
	err = walkDirs(b.Root, ".", "", func(dirfd int, p string) error {
		m, err := whiteout.ReadMarks(dirfd, ".")
		if err == nil && m.Redirect != "" && p != "" {
			list = append(list, p)
		}
		return err
	})
	return list, err
}

// walkDirs calls visit for every directory below name in dirfd, that itself
// included, except those that are removed meanwhile.
func walkDirs(dirfd int, name, p string, visit func(dirfd int, p string) error) error {
	fd, err := sys.OpenIn(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == unix.EXDEV || isGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	err = visit(fd, p)
	var entries []sys.Dirent
	if err == nil {
		entries, err = sys.ReadDir(fd)
	}
	if isGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type == unix.DT_DIR && !whiteout.Reserved(e.Name) {
			if err := walkDirs(fd, e.Name, strings.TrimPrefix(p+"/"+e.Name, "/"), visit); err != nil {
				return err
			}
		}
	}
	return nil
}

// fillDir copies up everything below the directory at p of the merged tree. With
// the gate shut that is all; else what is renamed or removed meanwhile may be left out.
func (f *FS) fillDir(p string, shut bool) error {
	var n *node
	var entries []branches.Entry
	err := f.inside(shut, func() (err error) {
		n, entries, err = f.openToFill(p)
		return err
	})
	if err != nil {
		return err
	}
	defer f.table.forget(n.id, 1)
	for _, e := range entries {
		if e.Type == unix.DT_DIR {
			err = f.fillDir(path.Join(p, e.Name), shut)
		} else {
			err = f.inside(shut, func() error { return f.fillFile(n, e.Name) })
		}
		if err != nil && (shut || !isGone(err)) {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return nil
}

// inside calls step as a request would, unless the gate is shut for the caller.
func (f *FS) inside(shut bool, step func() error) error {
	if !shut {
		f.gate.Enter()
		defer f.gate.Leave()
	}
	return step()
}

// openToFill returns the directory at p, counted as looked up and copied up, and
// what it shows.
func (f *FS) openToFill(p string) (*node, []branches.Entry, error) {
	n, err := f.nodeAt(p)
	if err != nil {
		return nil, nil, err
	}
	var entries []branches.Entry
	if !n.isDir() {
		err = unix.ENOTDIR
	}
	if err == nil {
		err = f.copyUp(n)
	}
	if err == nil {
		entries, err = f.stack.List(n.dir.tree)
	}
	if err != nil {
		f.table.forget(n.id, 1)
		return nil, nil, err
	}
	return n, entries, nil
}

// fillFile makes the file name in dir exist there in the upper, also where the
// copy of it has another name only.
func (f *FS) fillFile(dir *node, name string) error {
	dir.dir.mu.RLock()
	n, _, err := f.lookup(dir, name)
	dir.dir.mu.RUnlock()
	if err != nil {
		return err
	}
	defer f.table.forget(n.id, 1)
	if err := f.copyUp(n); err != nil {
		return err
	}
	dir.dir.mu.Lock()
	defer dir.dir.mu.Unlock()
	res, err := f.find(dir, name)
	if err != nil || res.Home != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return f.materializeLocked(n, dir, name)
}

// closeDir makes the directory at p in b, in which everything is that it shows,
// opaque instead of redirected, durably: what hid things in the branches below
// may go after that.
func closeDir(b *branches.Branch, p string) error {
	parent, name := path.Split(p)
	at, err := sys.OpenDir(b.Root, path.Clean("./"+parent))
	if err != nil {
		return err
	}
	defer sys.Close(at)
	if err := b.Format.SetOpaque(at, name); err != nil {
		return err
	}
	for _, ns := range []whiteout.Namespace{whiteout.Trusted, whiteout.User} {
		if err := sys.RemoveXattr(at, name, string(ns)+"overlay.redirect"); err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP && err != unix.EPERM {
			return err
		}
	}
	dir, err := sys.OpenDir(at, name)
	if err != nil {
		return err
	}
	defer sys.Close(dir)
	return sys.SyncDir(dir)
}

// dropWhiteouts removes the whiteouts below name in dirfd, a directory of which
// nothing shows from the branches below: kernel overlay would list them. What has a
// redirect of its own keeps what it has.
func dropWhiteouts(dirfd int, name string) error {
	fd, err := sys.OpenIn(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == unix.EXDEV {
		return nil
	}
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	m, err := whiteout.ReadMarks(fd, ".")
	if err != nil || m.Redirect != "" {
		return err
	}
	names, err := whiteout.Deleted(fd, m)
	if err == nil && len(names) > 0 {
		err = sys.KeepTimes(fd, func() error { return dropThese(fd, names) })
	}
	if err != nil {
		return err
	}
	entries, err := sys.ReadDir(fd)
	for _, e := range entries {
		if err == nil && e.Type == unix.DT_DIR && !whiteout.Reserved(e.Name) {
			err = dropWhiteouts(fd, e.Name)
		}
	}
	return err
}

// dropThese removes the whiteouts of the names in fd.
func dropThese(fd int, names []string) error {
	for _, name := range names {
		if st, err := sys.StatAt(fd, name, 0); err == nil && st.IsWhiteout() {
			if err := sys.Unlink(fd, name); err != nil {
				return err
			}
		}
		if err := sys.Unlink(fd, whiteout.Prefix+name); err != nil && err != unix.ENOENT && err != unix.ENAMETOOLONG {
			return err
		}
	}
	return nil
}
