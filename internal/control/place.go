package control

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// directories are where a socket may lie, the best first. A client looks in
// all of them, because its environment need not be the daemon's.
func directories() []string {
	uid := os.Geteuid()
	var dirs []string
	if run := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(run) && owned(run, uid) {
		dirs = append(dirs, filepath.Join(run, "layerfs"))
	}
	if uid == 0 {
		dirs = append(dirs, "/run/layerfs")
	} else {
		// A client may have the variable where the daemon had none.
		dirs = append(dirs, fmt.Sprintf("/run/user/%d/layerfs", uid))
	}
	return append(dirs, fmt.Sprintf("/tmp/layerfs-%d", outerID(uid)))
}

// outerID returns the user id outside this user namespace. Inside everybody
// is root, and all of them share /tmp.
func outerID(uid int) int {
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return uid
	}
	for _, line := range strings.Split(string(data), "\n") {
		var inner, outer, n int
		if _, err := fmt.Sscan(line, &inner, &outer, &n); err == nil && uid >= inner && uid-inner < n {
			return outer + uid - inner
		}
	}
	return uid
}

func owned(dir string, uid int) bool {
	fi, err := os.Stat(dir)
	if err != nil || !fi.IsDir() {
		return false
	}
	return int(fi.Sys().(*syscall.Stat_t).Uid) == uid
}

// safe says whether a socket found in dir can only be ours: somebody else
// may have made the directory in /tmp before us.
func safe(dir string) error {
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	uid := os.Geteuid()
	if !fi.IsDir() || int(fi.Sys().(*syscall.Stat_t).Uid) != uid || fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is not a directory that only user %d can write", dir, uid)
	}
	return nil
}

// usable makes the directory when it is missing.
func usable(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	return safe(dir)
}

func socketName(dev uint64) string {
	return fmt.Sprintf("%d-%d.sock", unix.Major(dev), unix.Minor(dev))
}
