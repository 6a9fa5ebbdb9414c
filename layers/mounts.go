package layers

import (
	"os"
	"strings"
)

// mountedOn reports whether something is mounted on the directory at, an absolute
// path without symbolic links. It asks the kernel's list, since the daemon of a
// mount may be dead.
func mountedOn(at string) bool {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 4 && unescape.Replace(f[4]) == at {
			return true
		}
	}
	return false
}

// unescape undoes the octal escapes of mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
