package offline

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// overlaysOn returns where overlays are mounted that have dir as upper or
// lower, according to the text of a mountinfo.
func overlaysOn(mountinfo, dir string) []string {
	var points []string
	for _, line := range strings.Split(mountinfo, "\n") {
		before, after, _ := strings.Cut(line, " - ")
		front, back := strings.Fields(before), strings.Fields(after)
		if len(front) < 5 || len(back) < 3 || back[0] != "overlay" {
			continue
		}
		if names(back[2], dir) {
			points = append(points, octal.Replace(front[4]))
		}
	}
	return points
}

// octal undoes the escapes of mountinfo.
var octal = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// names reports whether the options of an overlay name dir. The kernel shows
// a comma or a colon in a path as it was given to it, with a backslash.
func names(options, dir string) bool {
	escaped := strings.NewReplacer(`\`, `\\`, ",", `\,`, ":", `\:`).Replace(dir)
	for _, o := range strings.Split(hold.Replace(octal.Replace(options)), ",") {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "upperdir", "lowerdir", "lowerdir+", "datadir+":
			for _, d := range strings.Split(value, ":") {
				if d = release.Replace(d); d == dir || d == escaped {
					return true
				}
			}
		}
	}
	return false
}

// hold keeps escaped separators out of the way of Split, release brings them back.
var (
	hold    = strings.NewReplacer(`\,`, "\x01", `\:`, "\x02")
	release = strings.NewReplacer("\x01", ",", "\x02", ":")
)
