package driver

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// Locked runs fn while no other process does so with the same file, which is made when it
// is not there.
func Locked(path string, fn func() error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := sys.FlockWait(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	return fn()
}
