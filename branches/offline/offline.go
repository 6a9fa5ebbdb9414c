// Package offline opens a branch as nobody has it mounted, to examine or
// change it from outside.
//
// Whoever changes a branch must be alone with it. A layerfs daemon locks the
// work directory of its upper; an Upper takes the same lock where the work
// directory is known, which it is for a br= branch. Besides, every process is
// looked at that this user may look at: a FUSE daemon that has the directory
// open uses it, be it as its upper or as a lower, and so does a kernel
// overlay that names it in any mount namespace.
package offline

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Upper is an open branch.
type Upper struct {
	Path    string // real, for messages
	Root    int    // O_PATH descriptor
	WorkDir string // "" when it is not known
	Tmp     int    // O_PATH descriptor of WORKDIR/work, -1 when there is none
	Keep    int    // O_PATH descriptor of WORKDIR/layerfs, -1 when there is none
	Users   []string
	lock    int
}

// Open opens the branch dir for looking. Who has it mounted is in Users.
// workDir is that of an upperdir=, "" for a br= branch or when it is not known.
func Open(dir, workDir string) (*Upper, error) {
	u := &Upper{Root: -1, Tmp: -1, Keep: -1, lock: -1}
	if err := u.open(dir, workDir); err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

// OpenAlone is Open for changing; it is refused while anybody uses the branch.
func OpenAlone(dir, workDir string) (*Upper, error) {
	u, err := Open(dir, workDir)
	if err == nil && len(u.Users) > 0 {
		err = errs.New(errs.Busy, "%s is in use by %s: unmount it first", u.Path, u.Users[0])
		u.Close()
	}
	if err != nil {
		return nil, err
	}
	return u, nil
}

func (u *Upper) open(dir, workDir string) (err error) {
	if u.Path, err = realPath(dir); err != nil {
		return errs.New(errs.Of(err), "branch %s: %w", dir, unwrap(err))
	}
	if u.Root, err = sys.OpenRoot(u.Path); err != nil {
		if err == unix.ENOTDIR {
			return errs.New(errs.Usage, "branch %s is not a directory", dir)
		}
		return errs.New(errs.Of(err), "branch %s: %w", dir, err)
	}
	u.Users = users(u.Path)
	return u.openWork(workDir)
}

func (u *Upper) openWork(workDir string) error {
	if workDir == "" {
		private := filepath.Join(u.Path, whiteout.PrivateDir)
		if st, err := sys.StatAt(u.Root, whiteout.PrivateDir, 0); err != nil || !st.IsDir() {
			return nil
		}
		workDir = private
	}
	path, err := realPath(workDir)
	if err != nil {
		return errs.New(errs.Of(err), "work directory %s: %w", workDir, unwrap(err))
	}
	u.lock, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if err == unix.ENOTDIR {
			return errs.New(errs.Usage, "work directory %s is not a directory", workDir)
		}
		return errs.New(errs.Of(err), "work directory %s: %w", workDir, err)
	}
	u.WorkDir = path
	switch err := sys.Flock(u.lock); {
	case err == unix.EWOULDBLOCK:
		u.Users = append(u.Users, "a writable mount, which has locked the work directory "+path)
	case err != nil:
		return errs.New(errs.Of(err), "work directory %s cannot be locked: %w", workDir, err)
	}
	if u.Tmp, err = below(u.lock, "work"); err == nil {
		u.Keep, err = below(u.lock, "layerfs")
	}
	if err != nil {
		return errs.New(errs.Of(err), "work directory %s: %w", workDir, err)
	}
	return nil
}

// below opens a directory, -1 when there is none.
func below(at int, name string) (int, error) {
	fd, err := sys.OpenDir(at, name)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return -1, nil
	}
	return fd, err
}

// Close lets the branch go.
func (u *Upper) Close() {
	for _, fd := range []int{u.Root, u.Tmp, u.Keep, u.lock} {
		if fd >= 0 {
			sys.Close(fd)
		}
	}
}

func realPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// unwrap takes off what os says of the path, which the message names already.
func unwrap(err error) error {
	if e, ok := err.(*os.PathError); ok {
		return e.Err
	}
	return err
}
