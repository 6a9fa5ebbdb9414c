package run

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// Commands in containers of the store, on every driver.
func TestContainers(t *testing.T) {
	drivers := []string{"union", "vfs"}
	if harness.Root() {
		drivers = append(drivers, "overlay", "thin")
	}
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			b := newBench(t)
			b.Sh("tar -C image -cf image.tar .")
			b.store("layer", "import", "base", "image.tar")
			b.store("container", "create", "--from", "base", "made")
			b.inside("echo 1 >/one; rm /bin/id", "made")
			require.Equal(t, "C /bin\nD /bin/id\nA /one\n", b.store("container", "changes", "made"))
			require.Equal(t, "1\n", b.inside("cat /one; test ! -e /bin/id", "made"))
			b.inside("echo 2 >/two", "--from", "base", "new")
			b.store("container", "commit", "new", "more")
			require.Equal(t, "2\n", b.inside("cat /two; echo x >/two", "--from", "more"))
			require.Equal(t, "2\n", b.inside("cat /two", "--rm", "--from", "more", "third"), "nothing was kept")
			require.Equal(t, []string{"made", "new"}, b.containers())

			cmd, ended := b.start("new")
			if driver == "overlay" && !testing.Short() { // one that is in use is waited for
				r := b.run("new", "--", "true")
				require.Equal(t, 125, r.Code, r.Stderr)
				require.Contains(t, r.Stderr, "in use")
			}
			require.NoError(t, cmd.Process.Kill())
			b.end(cmd, ended)
			require.True(t, harness.Eventually(harness.Moment, func() bool { return len(b.left()) == 0 }))
			require.Equal(t, "2\n", b.inside("cat /two", "--rm", "new"), "the next one goes on with it")
			for args, says := range map[string]string{
				"--from nolayer -- true": "nolayer", "--from base made -- true": "made",
				"--from base --lower / -- true": "not both", "--driver nosuch made -- true": "nosuch",
			} {
				r := b.run(strings.Fields(args)...)
				require.Equal(t, 125, r.Code, args)
				require.Contains(t, r.Stderr, says)
			}
			b.store("container", "rm", "made")
			require.Empty(t, b.containers())
		})
	}
}

// store runs a command on the store, which must succeed. The first makes it.
func (b *bench) store(args ...string) string {
	b.T.Helper()
	args = append([]string{"--root", b.P("store"), "--driver", b.driver()}, args...)
	r := b.Layerfs(args...)
	require.Zero(b.T, r.Code, "layerfs %s: %s", strings.Join(args, " "), r.Stderr)
	return r.Stdout
}

// driver is the one that the name of the test says.
func (b *bench) driver() string {
	name := b.T.Name()
	return name[strings.LastIndexByte(name, '/')+1:]
}

func (b *bench) containers() []string {
	var names []string
	for _, l := range strings.Split(strings.TrimSpace(b.store("container", "ls")), "\n")[1:] {
		names = append(names, strings.Fields(l)[0])
	}
	return names
}
