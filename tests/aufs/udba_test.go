package aufs

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// Users' direct branch access: what is done in a branch behind the mount's back
// is seen, at once by notify, within a second or so by reval; and what is done
// through the mount meanwhile is right.
func TestDirectAccess(t *testing.T) {
	for udba, wait := range map[string]time.Duration{"notify": 3 * time.Second, "reval": 4 * time.Second} {
		t.Run(udba, func(t *testing.T) {
			e := harness.New(t)
			e.Sh(`mkdir a b; for x in a b; do mkdir -p $x/d; echo $x >$x/d/$x; done; echo old >b/d/f`)
			e.Mount("br=u=rw:a=ro+wh:b=ro,udba=" + udba)
			for _, step := range []struct{ outside, path, want string }{
				{":", "d/f", "old"},
				{"echo new >b/d/n", "d/n", "new"},
				{"echo longer than before >b/d/f", "d/f", "longer than before"},
				{"echo upper >a/d/f", "d/f", "upper"},
				{"rm a/d/f", "d/f", "longer than before"},
				{"mv b/d/n b/d/o", "d/n", "no such file or directory"},
				{":", "d/o", "new"},
				{">a/d/.wh.o", "d/o", "no such file or directory"},
				{"rm a/d/.wh.o", "d/o", "new"},
				{"mkdir -p b/e/g; echo deep >b/e/g/f", "e/g/f", "deep"},
				{"mkdir a/e; echo other >a/e/x", "e/x", "other"},
				{"rm -r b/e a/e", "e", "no such file or directory"},
				{"echo mine >u/top", "top", "mine"},
				{"echo later >u/top", "top", "later"},
			} {
				e.Sh(step.outside)
				require.Eventually(t, func() bool { return read(e.P("m", step.path)) == step.want }, wait, 20*time.Millisecond,
					"%s: %s is %q", step.outside, step.path, read(e.P("m", step.path)))
			}
			list, err := os.ReadDir(e.P("m/d"))
			require.NoError(t, err)
			names := ""
			for _, d := range list {
				names += d.Name() + " "
			}
			require.Equal(t, "a b f o ", names)
			for i := range 200 {
				path := e.P("m/d", fmt.Sprint("own", i%7))
				require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("x", i)), 0644))
				require.Len(t, read(path), i)
				require.NoError(t, os.Rename(path, path+".r"))
				require.Equal(t, "no such file or directory", read(path))
				require.NoError(t, os.Remove(path+".r"))
			}
		})
	}
}
