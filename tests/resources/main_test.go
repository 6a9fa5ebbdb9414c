package resources

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

const (
	// cachedDirs is how many descriptors of directories the daemon keeps
	// (maxCachedDirs in branches), fewFds what else it may have open.
	cachedDirs = 256
	fewFds     = 64
)

func TestMain(m *testing.M) {
	syscall.Umask(022)
	harness.Main(m)
}

// size is the full or the short size.
func size(most, few int) int {
	if harness.Full() {
		return most
	}
	return few
}

// rss is the resident memory of a process in bytes.
func rss(t testing.TB, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, after, _ := strings.Cut(string(data), "VmRSS:")
	var kb int
	_, err = fmt.Sscan(after, &kb)
	require.NoError(t, err)
	return kb << 10
}

// fds counts the open descriptors of a process.
func fds(t testing.TB, pid int) int {
	t.Helper()
	n := len(harness.OpenFiles(pid))
	require.Positive(t, n)
	return n
}

// nodes is how many inodes the daemon knows.
func nodes(t testing.TB, m *harness.Mount) int {
	t.Helper()
	r := m.Env.Layerfs("status", "--json", m.Point)
	require.Zero(t, r.Code, r.Stderr)
	var s struct {
		Nodes int `json:"nodes"`
	}
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &s))
	return s.Nodes
}

// plant makes n files below dir, in directories of a thousand. In each is its
// name, if content says so.
func plant(t testing.TB, dir string, n int, content bool) {
	t.Helper()
	for i := 0; i < n; i++ {
		d := fmt.Sprintf("%s/d%d", dir, i/1000)
		if i%1000 == 0 {
			require.NoError(t, os.MkdirAll(d, 0755))
		}
		name := fmt.Sprintf("f%d", i)
		if content {
			require.NoError(t, os.WriteFile(d+"/"+name, []byte(name), 0644))
		} else {
			require.NoError(t, unix.Mknod(d+"/"+name, unix.S_IFREG|0644, 0))
		}
	}
}

// walk looks at every file below root and returns how many there are.
func walk(t testing.TB, root string) int {
	t.Helper()
	entries, err := os.ReadDir(root)
	require.NoError(t, err)
	n := 0
	for _, e := range entries {
		p := root + "/" + e.Name()
		if harness.Stat(t, p).Mode&unix.S_IFMT == unix.S_IFDIR {
			n += walk(t, p)
		} else {
			n++
		}
	}
	return n
}

// exhausted reports whether err says that there are no more descriptors.
func exhausted(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}
