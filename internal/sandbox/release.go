package sandbox

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// spare is a directory of the host that the holder can do without.
const spare = "/sys"

// Release lets go of every mount in this mount namespace but those of /proc and
// below the directory keep, which stays where it is. Otherwise what others
// unmount while the command runs would go on to exist here, and with it the
// daemons and devices behind it. In a user namespace what is mounted below a directory
// that somebody has open stays (disconnect_mount in the kernel), unless its unmount
// is propagated from the host, as it is where systemd runs.
func Release(keep string) error {
	if err := release(keep); err != nil {
		return fmt.Errorf("letting go of the mounts of others: %w", err)
	}
	return nil
}

func release(keep string) error {
	if err := unix.Mount("tmpfs", spare, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	for _, dir := range []string{"/proc", keep} {
		to := filepath.Join(spare, dir)
		if err := os.MkdirAll(to, 0755); err != nil {
			return err
		}
		if err := unix.Mount(dir, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
	}
	return sys.ChangeRoot(spare)
}
