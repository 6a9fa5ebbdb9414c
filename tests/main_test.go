package tests

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// errno returns the errno that err wraps, 0 for nil.
func errno(err error) syscall.Errno {
	var e syscall.Errno
	if err != nil && !errors.As(err, &e) {
		panic(err)
	}
	return e
}

func wantErrno(t testing.TB, want syscall.Errno, err error, msg ...any) {
	t.Helper()
	require.Equal(t, want.Error(), errno(err).Error(), msg...)
}

func write(t testing.TB, p, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(p, []byte(content), 0644))
}

func read(t testing.TB, p string) string {
	t.Helper()
	data, err := os.ReadFile(p)
	require.NoError(t, err)
	return string(data)
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

// ptr is for reading what the kernel has put into a buffer.
func ptr(b []byte) unsafe.Pointer { return unsafe.Pointer(&b[0]) }

// seeds is how many random histories to try: $LAYERFS_TEST_SEEDS for a long
// search, else what fits the kind of run.
func seeds(t testing.TB, long, short int) int {
	t.Helper()
	if testing.Short() {
		long = short
	}
	return harness.Setting("LAYERFS_TEST_SEEDS", long)
}
