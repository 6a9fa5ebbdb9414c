package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/layers"
)

// storeFlags are the options that say which store a command works on. They may
// stand before the command's name or behind it.
type storeFlags struct {
	root, driver string
	options      []string
}

// globalFlags are those that stood before the command's name.
var globalFlags = storeFlags{driver: "auto"}

// takeGlobal takes the store's options from the front of args.
func takeGlobal(args []string) (rest []string, err error) {
	for len(args) > 0 {
		name, value, joined := strings.Cut(args[0], "=")
		switch name {
		case "--root", "--driver", "--storage-opt":
		default:
			return args, nil
		}
		args = args[1:]
		if !joined {
			if len(args) == 0 {
				return nil, errs.New(errs.Usage, "%s needs a value", name)
			}
			value, args = args[0], args[1:]
		}
		switch name {
		case "--root":
			globalFlags.root = value
		case "--driver":
			globalFlags.driver = value
		default:
			globalFlags.options = append(globalFlags.options, value)
		}
	}
	return args, nil
}

// storeCommand is a command on a store.
type storeCommand struct {
	*command
	flags storeFlags
}

func newStoreCommand(name string, listing bool) *storeCommand {
	c := &storeCommand{command: newCommand(name, listing)}
	c.StringVar(&c.flags.root, "root", globalFlags.root, "")
	c.StringVar(&c.flags.driver, "driver", globalFlags.driver, "")
	c.StringArrayVar(&c.flags.options, "storage-opt", globalFlags.options, "")
	return c
}

// defaultRoot is where the store of this user is.
func defaultRoot() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/layerfs", nil
	}
	if data := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(data) {
		return filepath.Join(data, "layerfs"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", errs.New(errs.Usage, "neither XDG_DATA_HOME nor HOME says where the store is: give --root DIR")
	}
	return filepath.Join(home, ".local", "share", "layerfs"), nil
}

// storeRoot is where the store is that the flags name.
func (c *storeCommand) storeRoot() (string, error) {
	if c.flags.root != "" {
		return c.flags.root, nil
	}
	return defaultRoot()
}

// open opens the store that the flags name, and says which driver a new one got.
func (c *storeCommand) open() (*layers.Store, error) {
	root, err := c.storeRoot()
	if err != nil {
		return nil, err
	}
	s, err := layers.Open(c.config(root))
	if err != nil {
		return nil, err
	}
	if choice := s.HowChosen(); choice != nil {
		warn("new store %s: %s", s.Root(), choiceLine(choice))
	}
	return s, nil
}

func (c *storeCommand) config(root string) layers.Config {
	abs, err := filepath.Abs(root)
	if err != nil {
		abs = root
	}
	return layers.Config{
		Root: root, Driver: c.flags.driver, Options: c.flags.options,
		Union: unionMounter{filepath.Join(abs, "run")}, ThinPool: openThinPool, ThinHouse: thinHouse{}, Warn: warnLine,
	}
}

// choiceLine says which driver was chosen, and why not one before it.
func choiceLine(list []layers.Choice) string {
	line := ""
	for _, c := range list {
		if c.Chosen {
			return "driver " + c.Driver + line
		}
		line += fmt.Sprintf("; not %s: %s", c.Driver, c.Reason)
	}
	return line
}

// table prints rows below a heading.
func table(heading string, rows [][]string) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, heading)
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

func cmdInfo(args []string) error {
	c := newStoreCommand("info", true)
	if done, err := c.parse(args, 0, 0); done || err != nil {
		return err
	}
	s, err := c.open()
	if err != nil {
		return err
	}
	fields, err := s.Info()
	if err != nil {
		return err
	}
	if c.json {
		object := map[string]string{}
		for _, f := range fields {
			object[strings.TrimSpace(f.Name)] = f.Value
		}
		return printJSON(object)
	}
	for _, f := range fields {
		fmt.Printf("%s: %s\n", f.Name, f.Value)
	}
	return nil
}
