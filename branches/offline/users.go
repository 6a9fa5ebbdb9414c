package offline

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/layerfs/layerfs/internal/mounts"
)

// users says which processes and mounts use the directory dir, as far as this
// user may know. A FUSE daemon is a process with /dev/fuse open; layerfs and
// its like keep the roots of their branches open as well. This finds daemons
// of other users and in other mount namespaces, whose control channels would
// not answer to us.
func users(dir string) []string {
	var out []string
	seen := map[string]bool{} // mount namespaces
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if servesFrom(p, dir) {
			out = append(out, fmt.Sprintf("process %s (%s)", filepath.Base(p), command(p)))
		}
		ns, err := os.Readlink(p + "/ns/mnt")
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		data, _ := os.ReadFile(p + "/mountinfo")
		for _, point := range overlaysOn(string(data), dir) {
			out = append(out, "the overlay mount on "+point)
		}
	}
	return out
}

// servesFrom reports whether the process at p in /proc is a FUSE daemon that
// has dir open.
func servesFrom(p, dir string) bool {
	fds, err := os.ReadDir(p + "/fd")
	if err != nil {
		return false
	}
	fuse, open := false, false
	for _, fd := range fds {
		switch to, _ := os.Readlink(p + "/fd/" + fd.Name()); to {
		case "/dev/fuse":
			fuse = true
		case dir:
			open = true
		}
	}
	return fuse && open
}

func command(p string) string {
	args, _ := os.ReadFile(p + "/cmdline")
	name, _, _ := strings.Cut(string(args), "\x00")
	return filepath.Base(name)
}

// overlaysOn returns where overlays are mounted that use dir, according to the
// text of a mountinfo.
func overlaysOn(mountinfo, dir string) []string {
	var points []string
	for _, m := range mounts.Parse(mountinfo) {
		if o, ok := m.Overlay(); ok && o.Uses(dir) {
			points = append(points, m.Point)
		}
	}
	return points
}
