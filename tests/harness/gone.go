package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// WaitGone waits for the end of the daemon of a mount that was unmounted, and
// fails the test when it stays. A mount namespace that another process has
// made meanwhile holds a copy of every mount; while there is one the daemon
// rightly lives.
func WaitGone(t testing.TB, pid int, point string) {
	t.Helper()
	dead := func() bool { return !alive(pid) }
	for i := 0; i < 60; i++ {
		if Eventually(2*time.Second, dead) {
			return
		}
		if len(holders(point)) == 0 {
			break
		}
	}
	if !dead() {
		t.Errorf("daemon %d is still there after the unmount of %s; held by %v; its threads:\n%s", pid, point, holders(point), threads(pid))
	}
}

// holders lists a process of each mount namespace that has a mount at point.
func holders(point string) []string {
	seen := map[string]bool{}
	var list []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		ns, err := os.Readlink(p + "/ns/mnt")
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		mounts, _ := os.ReadFile(p + "/mountinfo")
		if strings.Contains(string(mounts), " "+point+" ") {
			args, _ := os.ReadFile(p + "/cmdline")
			list = append(list, filepath.Base(p)+" "+strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return list
}

// threads says what every thread of a process waits for.
func threads(pid int) string {
	var b strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		wchan, _ := os.ReadFile(task + "/wchan")
		call, _ := os.ReadFile(task + "/syscall")
		fmt.Fprintf(&b, "%s %s %s", filepath.Base(task), wchan, call)
	}
	return b.String()
}
