package harness

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Lacking skips the test because the machine lacks something, or fails it
// when the caller has promised that nothing is lacking.
func Lacking(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("LAYERFS_TEST_STRICT") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// Root reports whether the tests run as root.
func Root() bool { return os.Geteuid() == 0 }

// RequireRoot is for tests whose very subject is root's. The ordinary user's
// leg skips them in strict mode too, since root's leg runs them.
func RequireRoot(t testing.TB) {
	t.Helper()
	if !Root() {
		t.Skip("root only: it is tested in the leg that runs as root")
	}
}

// RequireFUSE is for every test that mounts.
func RequireFUSE(t testing.TB) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		Lacking(t, "/dev/fuse cannot be opened: %v", err)
	}
	unix.Close(fd)
	RequireTool(t, "fusermount3", "fuse3")
}

// RequireTool is for tests that run a program of a Debian package.
func RequireTool(t testing.TB, tool, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		Lacking(t, "%s is not installed (Debian package %s)", tool, pkg)
	}
}

// TrustedNS is the xattr namespace in which this user's records lie.
func TrustedNS() string {
	if Root() {
		return "trusted."
	}
	return "user."
}
