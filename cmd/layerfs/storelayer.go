package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/units"
	"github.com/layerfs/layerfs/layers"
)

var layerCommands = map[string]func(args []string) error{
	"import": layerImport, "import-image": layerImportImage, "ls": layerList, "diff": layerDiff, "rm": layerRemove,
}

func cmdLayer(args []string) error { return subcommand("layer", layerCommands, args) }

func layerImport(args []string) error {
	c := newStoreCommand("layer import", false)
	if done, err := c.parse(args, 2, 2); done || err != nil {
		return err
	}
	f, size, err := openInput(c.Arg(1))
	if err != nil {
		return err
	}
	defer f.Close()
	s, err := c.open()
	if err != nil {
		return err
	}
	bar := newProgress("importing "+c.Arg(0), size)
	l, err := s.ImportLayer(c.Arg(0), io.TeeReader(f, bar))
	bar.done()
	if err != nil {
		return errs.New(errs.Of(err), "layer import %s: %w", c.Arg(1), err)
	}
	fmt.Println(l.ID)
	return nil
}

// openInput opens a file, or standard input for "-", whose size is not known then.
func openInput(name string) (*os.File, int64, error) {
	if name == "-" {
		return os.Stdin, -1, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && fi.IsDir() {
		err = errs.New(errs.Usage, "%s is a directory: a tar is wanted", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	if !fi.Mode().IsRegular() {
		return f, -1, nil
	}
	return f, fi.Size(), nil
}

func layerImportImage(args []string) error {
	c := newStoreCommand("layer import-image", false)
	name := c.String("name", "", "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	f, _, err := openInput(c.Arg(0))
	if err != nil {
		return err
	}
	s, err := c.open()
	if err != nil {
		f.Close()
		return err
	}
	var bar *progress
	next := func(what string, size int64) io.Writer {
		bar.done()
		bar = newProgress(what, size)
		return bar
	}
	made, err := s.ImportImage(f, *name, next)
	bar.done()
	for _, l := range made {
		printImported(l)
	}
	if err != nil {
		return errs.New(errs.Of(err), "layer import-image %s: %w", c.Arg(0), err)
	}
	return nil
}

func printImported(l *layers.Layer) {
	if len(l.Names) == 0 {
		fmt.Println(l.ID)
	}
	for _, name := range l.Names {
		fmt.Println(name)
	}
}

func layerList(args []string) error {
	c := newStoreCommand("layer ls", true)
	if done, err := c.parse(args, 0, 0); done || err != nil {
		return err
	}
	s, err := c.open()
	if err != nil {
		return err
	}
	list, err := s.Layers()
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(append([]*layers.Layer{}, list...))
	}
	var rows [][]string
	for _, l := range list {
		names := l.Names
		if len(names) == 0 {
			names = []string{"<none>"}
		}
		for _, name := range names {
			rows = append(rows, []string{name, shortID(l.ID), shortID(l.Parent), units.Decimal(l.Size), l.Created.Local().Format(time.DateTime)})
		}
	}
	return table("NAME\tID\tPARENT\tSIZE\tCREATED", rows)
}

// shortID is an id as listings show it; "-" for none.
func shortID(id string) string {
	if id == "" {
		return "-"
	}
	return id[:min(len(id), 12)]
}

func layerDiff(args []string) error {
	c := newStoreCommand("layer diff", false)
	out := c.StringP("output", "o", "-", "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	s, err := c.open()
	if err != nil {
		return err
	}
	return writeTar("layer diff", *out, func(w io.Writer) error { return s.DiffLayer(c.Arg(0), w) })
}

func layerRemove(args []string) error {
	c := newStoreCommand("layer rm", false)
	if done, err := c.parse(args, 1, maxOperands); done || err != nil {
		return err
	}
	s, err := c.open()
	if err != nil {
		return err
	}
	return forEach(c.Args(), s.RemoveLayer)
}

// maxOperands is no limit.
const maxOperands = 1 << 30

// forEach does something to every operand, also after one failed, and returns what
// failed first.
func forEach(operands []string, do func(string) error) (first error) {
	for _, o := range operands {
		err := do(o)
		if err != nil && first != nil {
			warn("%v", err)
		}
		if first == nil {
			first = err
		}
	}
	return first
}
