package tests

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// Whoever reads a directory sees every name that is there all the time once,
// whatever others read and change meanwhile.
func TestReadersOfAChangingDirectory(t *testing.T) {
	const files = 3000
	e := harness.New(t)
	for i := range files {
		e.Tree("l", fmt.Sprintf("d/low%d=", i))
	}
	m := e.Mount(e.RW())
	dir := m.P("d")
	var readers []*os.File
	seen := make([]map[string]int, 3)
	read := func(i, n int) {
		names, _ := readers[i].Readdirnames(n)
		for _, name := range names {
			seen[i][name]++
		}
	}
	for i := range seen {
		f, err := os.Open(dir)
		require.NoError(t, err)
		defer f.Close()
		readers = append(readers, f)
		seen[i] = map[string]int{}
		read(i, 200+i*700)
	}
	for i := 0; i < files; i += 3 {
		require.NoError(t, os.Remove(m.P("d", fmt.Sprintf("low%d", i))))
		require.NoError(t, os.WriteFile(m.P("d", fmt.Sprintf("new%d", i)), nil, 0600))
		if i%300 == 0 {
			_, err := os.ReadDir(dir) // lists it anew
			require.NoError(t, err)
			read(i/300%3, 100)
		}
	}
	for i := range readers {
		read(i, -1)
		for k := range files {
			name := fmt.Sprintf("low%d", k)
			if k%3 != 0 {
				require.Equal(t, 1, seen[i][name], "reader %d: %s", i, name)
			}
		}
		for name, n := range seen[i] {
			require.Equal(t, 1, n, "reader %d: %s", i, name)
		}
	}
	now, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, now, files)
}

// A file that is read or written without our knowing that it is open stays open
// for a moment, not longer; a deleted one as long as somebody has it.
func TestFilesAreClosedAfterAMoment(t *testing.T) {
	e := harness.New(t).Tree("l", "low=1").Tree("u", "old=2")
	m := e.Mount(e.RW())
	open := func() (n int) {
		for _, f := range harness.OpenFiles(m.Pid) {
			if strings.HasPrefix(f, e.P("l")+"/") || strings.HasPrefix(f, e.P("u")+"/") {
				n++
			}
		}
		return n
	}
	held, err := os.Open(m.P("old"))
	require.NoError(t, err)
	defer held.Close()
	require.NoError(t, os.Remove(m.P("old")))
	require.Equal(t, "1", read(t, m.P("low")))
	require.NoError(t, os.WriteFile(m.P("up"), []byte("3"), 0600))
	require.Greater(t, open(), 2)
	require.True(t, harness.Eventually(5*time.Second, func() bool { return open() == 1 }), "all but the deleted one")
	buf := make([]byte, 4)
	n, err := held.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "2", string(buf[:n]))
}
