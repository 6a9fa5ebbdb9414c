package harness

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// bin is the program under test, in a place that every user can reach.
var bin string

// Bin returns the absolute path of the program under test.
func Bin() string { return bin }

// Repo returns the root of the repository.
func Repo() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Base is the directory in which tests make theirs. /tmp may be a tmpfs,
// which lacks much of what a branch needs; /var/tmp is a real file system.
func Base() string {
	if d := os.Getenv("LAYERFS_TEST_DIR"); d != "" {
		return d
	}
	return "/var/tmp"
}

var atExit []func()

// AtExit has fn called by Main after the tests.
func AtExit(fn func()) { atExit = append(atExit, fn) }

// FdPath is the path by which calls that want one reach an open file.
func FdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// Main is the TestMain of a package of black box tests.
func Main(m *testing.M) {
	dir, err := prepare()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests cannot start:", err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	for _, fn := range atExit {
		fn()
	}
	os.Exit(code)
}

func prepare() (dir string, err error) {
	src := os.Getenv("LAYERFS_BIN")
	if src == "" {
		src = filepath.Join(Repo(), "bin", "layerfs")
		build := exec.Command("go", "build", "-o", src, "./cmd/layerfs")
		build.Dir, build.Stderr = Repo(), os.Stderr
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if err := build.Run(); err != nil {
			return "", fmt.Errorf("building %s: %w", src, err)
		}
	}
	// A copy: the repository may lie where an ordinary user cannot go, and
	// the tests' processes are told from others by this path.
	dir, err = os.MkdirTemp(Base(), "layerfs-bin-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0755); err != nil {
		return dir, err
	}
	bin = filepath.Join(dir, "layerfs")
	return dir, copyFile(src, bin)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
