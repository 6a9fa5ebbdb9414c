package lint

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/layerfs/layerfs/"

// rooms says which other rooms a room may import; all may import internal/.
// A room is the first component of a package's path.
var rooms = map[string][]string{
	"cmd":           {"fs", "branches", "whiteout", "blockstore", "kernelbackend", "layers", "snapshotter"},
	"fs":            {"branches", "whiteout", "blockstore/client"},
	"branches":      {"whiteout"},
	"whiteout":      {},
	"blockstore":    {},
	"kernelbackend": {"branches", "whiteout"},
	"layers":        {"kernelbackend", "branches", "whiteout", "blockstore/client"},
	"snapshotter":   {"layers"},
	"internal":      {},
	"tests":         {"fs", "branches", "whiteout", "blockstore", "kernelbackend", "layers", "snapshotter", "tests"},
}

// owners says which packages may use a module from outside; a trailing slash
// means everything below.
var owners = map[string][]string{
	"github.com/hanwen/go-fuse":      {"fs", "blockstore/fusefile", "internal/fusedev", "cmd/", "tests/", "tests"},
	"github.com/dgraph-io/badger":    {"blockstore"},
	"github.com/spf13/pflag":         {"cmd/"},
	"github.com/klauspost/compress":  {"layers/oci"},
	"go.etcd.io/bbolt":               {"layers"},
	"github.com/schollz/progressbar": {"cmd/"},
	"github.com/stretchr/testify":    {"tests/", "tests"}, // elsewhere in tests only
}

type pkg struct {
	ImportPath, Dir                    string
	Imports, TestImports, XTestImports []string
	GoFiles                            []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json", "./...")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var pkgs []pkg
	for dec := json.NewDecoder(out); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		pkgs = append(pkgs, p)
	}
	require.NoError(t, cmd.Wait())
	require.NotEmpty(t, pkgs)
	return pkgs
}

func within(path string, list []string) bool {
	for _, l := range list {
		if path == strings.TrimSuffix(l, "/") && !strings.HasSuffix(l, "/") || strings.HasSuffix(l, "/") && strings.HasPrefix(path, l) {
			return true
		}
	}
	return false
}

// room returns the first component of a path within the module.
func room(path string) string {
	first, _, _ := strings.Cut(path, "/")
	return first
}

// allowed reports whether the package from may import the package to, both
// relative to the module.
func allowed(from, to string) bool {
	if room(to) == "internal" || from == to {
		return true
	}
	may, known := rooms[room(from)]
	if !known {
		return false
	}
	for _, m := range may {
		if to == m || strings.HasPrefix(to, m+"/") {
			return true
		}
	}
	return room(from) == room(to)
}

func TestImportDirections(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		require.Contains(t, rooms, room(from), "package %s is in no room of the plan", from)
		for _, imp := range p.Imports {
			if to, ours := strings.CutPrefix(imp, module); ours && !allowed(from, to) {
				t.Errorf("%s imports %s: not in the plan", from, to)
			}
			for mod, who := range owners {
				if (imp == mod || strings.HasPrefix(imp, mod+"/")) && !within(from, who) {
					t.Errorf("%s imports %s, which only %v may", from, imp, who)
				}
			}
		}
		for _, imp := range append(p.TestImports, p.XTestImports...) {
			if to, ours := strings.CutPrefix(imp, module); ours && !allowed(from, to) {
				t.Errorf("a test of %s imports %s: not in the plan", from, to)
			}
			if strings.HasPrefix(imp, module+"tests") && room(from) != "tests" {
				t.Errorf("a test of %s imports %s: nothing imports tests", from, imp)
			}
		}
	}
}

// The rules must be able to fail.
func TestRulesBite(t *testing.T) {
	for arrow, want := range map[[2]string]bool{
		{"fs", "branches"}: true, {"branches", "fs"}: false, {"whiteout", "branches"}: false,
		{"internal/sys", "whiteout"}: false, {"fs", "internal/sys"}: true, {"branches/check", "branches"}: true,
		{"fs", "blockstore"}: false, {"cmd/layerfs", "fs"}: true, {"fs", "tests/harness"}: false, {"nowhere", "fs"}: false,
	} {
		require.Equal(t, want, allowed(arrow[0], arrow[1]), "%s imports %s", arrow[0], arrow[1])
	}
	require.True(t, within("cmd/layerfs", owners["github.com/spf13/pflag"]))
	require.False(t, within("fs", owners["github.com/spf13/pflag"]))
}

// Raw system calls pass pointers that the compiler cannot check: they live in
// internal/sys alone.
func TestRawSystemCalls(t *testing.T) {
	raw := map[string]bool{"Syscall": true, "Syscall6": true, "RawSyscall": true, "RawSyscall6": true, "SyscallNoError": true}
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		if from == "internal/sys" || room(from) == "tests" {
			continue
		}
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
			require.NoError(t, err)
			ast.Inspect(file, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "unix" || x.Name == "syscall") && raw[sel.Sel.Name] {
					t.Errorf("%s: %s.%s outside internal/sys", fset.Position(sel.Pos()), x.Name, sel.Sel.Name)
				}
				return true
			})
		}
	}
}
