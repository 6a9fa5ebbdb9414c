package fs

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// SettleDirs makes every redirected directory of the upper a plain one: what
// it shows of the branches below is copied up, then it is opaque instead. That is
// for an upper that nobody uses: f must not be mounted, and is of no use
// afterwards but for Close. Killed at any moment, the tree is the same. It returns
// what became of the last Settle and of this.
func (f *FS) SettleDirs() (SettleStatus, error) {
	status := f.SettleStatus()
	b := f.stack.Upper()
	if b == nil || f.stack.Several() || status.Redirects == 0 {
		return status, nil
	}
	dirs, err := redirected(b)
	if err != nil {
		return status, err
	}
	failed := 0
	fail := func(p string, err error) {
		if err != nil {
			failed++
			status.Failed = append(status.Failed, fmt.Sprintf("%s: %v", p, err))
		}
	}
	for _, p := range dirs {
		fail(p, f.fillDir(p))
	}
	if failed == 0 { // else one may lie in another
		for _, p := range dirs {
			fail(p, closeDir(b, p))
		}
		status.Directories = len(dirs) - failed
	}
	status.Redirects = len(dirs) - status.Directories
	return status, nil
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

// walkDirs calls visit for every directory below name in dirfd, that itself included.
func walkDirs(dirfd int, name, p string, visit func(dirfd int, p string) error) error {
	fd, err := sys.OpenIn(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == unix.EXDEV || err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	if err := visit(fd, p); err != nil {
		return err
	}
	entries, err := sys.ReadDir(fd)
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

// fillDir copies up everything below the directory at p of the merged tree.
func (f *FS) fillDir(p string) error {
	n, err := f.nodeAt(p)
	if err != nil {
		return err
	}
	defer f.table.forget(n.id, 1)
	if !n.isDir() {
		return unix.ENOTDIR
	}
	if err := f.copyUp(n); err != nil {
		return err
	}
	entries, err := f.stack.List(n.dir.tree)
	if err != nil {
		return err
	}
	for _, e := range entries {
		child := path.Join(p, e.Name)
		if e.Type == unix.DT_DIR {
			err = f.fillDir(child)
		} else {
			err = f.fillFile(n, e.Name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return nil
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
// opaque instead of redirected, and removes what hides nothing any more.
func closeDir(b *branches.Branch, p string) error {
	if b.Format.Dialect == whiteout.Xattr {
		return fmt.Errorf("in the dialect xattr a directory cannot be made opaque in one step: %w", unix.EOPNOTSUPP)
	}
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
	fd, err := sys.OpenIn(at, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return sys.KeepTimes(fd, func() error { return dropWhiteouts(fd) })
}

// dropWhiteouts removes the whiteouts of an opaque directory.
func dropWhiteouts(fd int) error {
	m, err := whiteout.ReadMarks(fd, ".")
	if err != nil {
		return err
	}
	names, err := whiteout.Deleted(fd, m)
	if err != nil {
		return err
	}
	for _, name := range names {
		if st, err := sys.StatAt(fd, name, 0); err == nil && st.IsWhiteout() {
			err = sys.Unlink(fd, name)
			if err != nil {
				return err
			}
		}
		if err := sys.Unlink(fd, whiteout.Prefix+name); err != nil && err != unix.ENOENT && err != unix.ENAMETOOLONG {
			return err
		}
	}
	return nil
}
