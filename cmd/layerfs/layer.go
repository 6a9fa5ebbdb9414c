package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/fs"
	"github.com/layerfs/layerfs/internal/control"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/layers/oci"
)

const diffHelp = `Usage: layerfs diff [-o FILE.tar] MOUNTPOINT
       layerfs diff [-o FILE.tar] [--pool POOL] --upper DIR [--upper DIR]... [--lower DIR]...

Writes what the upper changes as an OCI image layer, a tar, to standard output
or to FILE.tar, which gets its name when it is complete. The same tree gives the
same bytes. Without --lower, what the upper records as deleted is taken at its word.
Files that were copied up by blocks are in it whole; --pool says which pool they
are in, if it is a shared one.

Example:
  layerfs diff /merged -o layer.tar
  layerfs diff --upper /changes --lower /image --lower /base | gzip > layer.tar.gz
`

const applyHelp = `Usage: layerfs apply --to DIR [--whiteout auto|aufs|overlay|xattr] FILE.tar

Unpacks an OCI image layer into DIR, to be used as a branch; "-" is standard
input, gzip and zstd are understood. Deletions are written in the dialect that DIR
has, else overlay's where the file system takes them. DIR is made if its parent exists.

Example:
  layerfs apply --to /layers/1 layer.tar
  layerfs mount -o lowerdir=/layers/2:/layers/1 /merged
`

// compared is what diff and changes work on.
type compared struct {
	mountpoint     string // "" for directories
	uppers, lowers []string
	pool           string // the shared pool, "" for none
}

// comparison is what is to be run, and end ends the use of pools.
func (in *compared) comparison() (cmp branches.Comparison, end func()) {
	stubs := &branches.Stubs{Pools: poolsHere(in.pool), Mountpoint: in.mountpoint}
	return branches.Comparison{Uppers: in.uppers, Lowers: in.lowers, Stubs: stubs}, stubs.Close
}

// parseCompared reads the operands of diff and changes, and asks a mount for
// its directories.
func parseCompared(c *command, args []string) (in compared, done bool, err error) {
	c.StringArrayVar(&in.uppers, "upper", nil, "")
	c.StringArrayVar(&in.lowers, "lower", nil, "")
	c.StringVar(&in.pool, "pool", "", "")
	if done, err := c.parse(args, 0, 1); done || err != nil {
		return in, done, err
	}
	switch {
	case c.NArg() == 1 && len(in.uppers)+len(in.lowers) > 0:
		err = errs.New(errs.Usage, "%s: give either a mountpoint or --upper, not both", c.Name())
	case c.NArg() == 1:
		in.mountpoint = c.Arg(0)
		in.uppers, in.lowers, err = stackOf(in.mountpoint)
		if err == nil && in.pool == "" && isFuse(in.mountpoint) == nil { // kernel overlay has no stubs
			in.pool, err = poolOf(in.mountpoint)
		}
	case len(in.uppers) == 0:
		err = errs.New(errs.Usage, "%s: a mountpoint or --upper is needed (see `layerfs %s --help`)", c.Name(), c.Name())
	}
	return in, false, err
}

// stackOf asks a mount for its directories: the branches down to the lowest
// that changes may go to, and those below them.
func stackOf(mountpoint string) (uppers, lowers []string, err error) {
	list, err := branchesOf(mountpoint)
	if err != nil {
		return nil, nil, err
	}
	n := 0
	paths := make([]string, len(list))
	for i, b := range list {
		paths[i] = b.Path
		if strings.HasPrefix(b.Mode, branches.RW.String()) {
			n = i + 1
		}
	}
	if n == 0 {
		return nil, nil, errs.New(errs.NotFound, "%s has no writable branch, so nothing changes in it", mountpoint)
	}
	return paths[:n], paths[n:], flush(mountpoint)
}

// poolOf asks a mount for its shared pool, "" for none.
func poolOf(mountpoint string) (string, error) {
	var status fs.Status
	err := control.Call(mountpoint, "status", nil, &status)
	return status.Pool, err
}

// flush makes what programs have written into a mount arrive in its upper.
func flush(mountpoint string) error {
	fd, err := sys.OpenRoot(mountpoint)
	if err != nil {
		return fmt.Errorf("%s: %w", mountpoint, err)
	}
	defer sys.Close(fd)
	if err := sys.SyncFS(fd); err != nil {
		return fmt.Errorf("writing out %s: %w", mountpoint, err)
	}
	return nil
}

// change is one line of `layerfs changes`.
type change struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
}

func cmdChanges(args []string) error {
	c := newCommand("changes", true)
	in, done, err := parseCompared(c, args)
	if done || err != nil {
		return err
	}
	cmp, end := in.comparison()
	defer end()
	return printChanges(c.json, cmp.Run)
}

// printChanges prints the changes that run finds, one a line or as JSON.
func printChanges(asJSON bool, run func(emit func(*branches.Difference) error) error) error {
	list := []change{}
	err := run(func(ch *branches.Difference) error {
		switch {
		case ch.Path == "/":
			return nil // as docker diff
		case asJSON:
			list = append(list, change{string(ch.Kind), ch.Path})
			return nil
		}
		_, err := fmt.Printf("%c %s\n", ch.Kind, ch.Path)
		return err
	})
	if err != nil || !asJSON {
		return err
	}
	return printJSON(list)
}

func cmdDiff(args []string) error {
	c := newCommand("diff", false)
	out := c.StringP("output", "o", "-", "")
	in, done, err := parseCompared(c, args)
	if done || err != nil {
		return err
	}
	cmp, end := in.comparison()
	defer end()
	return writeTar("diff", *out, func(w io.Writer) error { return oci.Diff(w, cmp, warnLine) })
}

// writeTar has write write a tar to the file out, "-" being standard output.
func writeTar(command, out string, write func(io.Writer) error) error {
	if out != "-" {
		return oci.ToFile(out, write)
	}
	if _, err := unix.IoctlGetTermios(1, unix.TCGETS); err == nil {
		return errs.New(errs.Usage, "%s: a tar is nothing for a terminal: redirect it, or name a file with -o", command)
	}
	return write(os.Stdout)
}

func warnLine(line string) { warn("%s", line) }

func cmdApply(args []string) error {
	c := newCommand("apply", false)
	to := c.String("to", "", "")
	dialect := c.String("whiteout", "auto", "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	if *to == "" {
		return errs.New(errs.Usage, "apply: --to DIR is needed: where the layer is unpacked")
	}
	in := os.Stdin
	if name := c.Arg(0); name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("apply: %w", err)
		}
		defer f.Close()
		in = f
	}
	if err := os.Mkdir(*to, 0755); err != nil && !os.IsExist(err) {
		return fmt.Errorf("apply: directory %s: %w", *to, err)
	}
	if err := oci.Apply(in, *to, oci.Options{Dialect: *dialect, Warn: warnLine}); err != nil {
		return errs.New(errs.Of(err), "apply %s: %w", c.Arg(0), err)
	}
	return nil
}
