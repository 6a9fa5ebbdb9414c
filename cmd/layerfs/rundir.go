package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

// runsDir is where, in the store, each run has a directory, locked while it
// is in use. Those that are to be thrown away have names that start with a dot.
const runsDir = "runs"

var runName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// makeRunDir makes and locks the directory of the run name, of one that is to
// be thrown away when name is "". It is for the caller to do: whatever the holder
// opens keeps the mounts that it has seen it through.
func makeRunDir(store, name string) (dir string, lock *os.File, err error) {
	runs := filepath.Join(store, runsDir)
	if err := os.MkdirAll(runs, 0700); err != nil {
		return "", nil, err
	}
	switch {
	case name == "":
		dir, err = os.MkdirTemp(runs, ".")
	case !runName.MatchString(name):
		return "", nil, errs.New(errs.Usage, "%q is no name: letters, digits and _.- are", name)
	default:
		dir = filepath.Join(runs, name)
		if err = os.Mkdir(dir, 0700); errors.Is(err, os.ErrExist) {
			err = nil
		}
	}
	if err == nil {
		lock, err = lockDir(dir)
	}
	if err == unix.EWOULDBLOCK {
		err = errs.New(errs.Busy, "%s is running already", name)
	}
	return dir, lock, err
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := sys.Flock(int(f.Fd())); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sweep removes what runs that were killed have left.
func sweep(runs string) {
	left, _ := filepath.Glob(filepath.Join(runs, ".[0-9]*"))
	for _, dir := range left {
		if lock, err := lockDir(dir); err == nil {
			_ = os.RemoveAll(dir)
			lock.Close()
		}
	}
}
