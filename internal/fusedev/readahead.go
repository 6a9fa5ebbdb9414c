package fusedev

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// readAhead has the kernel read ahead up to what a READ can carry instead of the 128 KiB
// that it begins with: MaxReadAhead can only lower that. It takes root, and
// must come after the answer to INIT, which sets it. Without it reading is slower.
func readAhead(mountpoint string, bytes int) {
	var st unix.Statx_t
	// Only what the kernel knows: the mount is ours, and this may be its only reader.
	err := unix.Statx(unix.AT_FDCWD, mountpoint, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st)
	if err != nil || bytes <= 0 {
		return
	}
	name := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", st.Dev_major, st.Dev_minor)
	_ = os.WriteFile(name, []byte(strconv.Itoa(bytes>>10)), 0) // sysfs lets nobody make files
}
