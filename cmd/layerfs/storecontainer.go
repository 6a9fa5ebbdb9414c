package main

import (
	"fmt"
	"io"
	"time"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/units"
	"github.com/layerfs/layerfs/layers"
	"github.com/layerfs/layerfs/layers/driver"
)

var containerCommands = map[string]func(args []string) error{
	"create": containerCreate, "mount": containerMount, "umount": containerUmount, "ls": containerList, "rm": containerRemove,
	"changes": containerChanges, "diff": containerDiff, "commit": containerCommit,
}

func cmdContainer(args []string) error { return subcommand("container", containerCommands, args) }

// onStore reads the arguments of c and opens the store; s is nil when the help was
// asked for and given.
func onStore(c *storeCommand, args []string, lo, hi int) (*layers.Store, error) {
	if done, err := c.parse(args, lo, hi); done || err != nil {
		return nil, err
	}
	return c.open()
}

func containerCreate(args []string) error {
	c := newStoreCommand("container create", false)
	from := c.String("from", "", "")
	s, err := onStore(c, args, 1, 1)
	if s == nil || err != nil {
		return err
	}
	_, err = s.CreateContainer(c.Arg(0), *from)
	return err
}

func containerMount(args []string) error {
	c := newStoreCommand("container mount", false)
	var o driver.Options
	c.BoolVar(&o.ReadOnly, "read-only", false, "")
	c.BoolVar(&o.Volatile, "volatile", false, "")
	s, err := onStore(c, args, 1, 2)
	if s == nil || err != nil {
		return err
	}
	at, err := s.Mount(c.Arg(0), c.Arg(1), o)
	if err != nil {
		return err
	}
	fmt.Println(at)
	return nil
}

func containerUmount(args []string) error {
	c := newStoreCommand("container umount", false)
	s, err := onStore(c, args, 1, maxOperands)
	if s == nil || err != nil {
		return err
	}
	return forEach(c.Args(), s.Unmount)
}

func containerRemove(args []string) error {
	c := newStoreCommand("container rm", false)
	force := c.BoolP("force", "f", false, "")
	s, err := onStore(c, args, 1, maxOperands)
	if s == nil || err != nil {
		return err
	}
	return forEach(c.Args(), func(name string) error { return s.RemoveContainer(name, *force) })
}

// listedContainer is one line of `container ls`.
type listedContainer struct {
	*layers.Container
	Mounted string        `json:"mounted"`
	Usage   *driver.Usage `json:"usage,omitempty"`
}

func containerList(args []string) error {
	c := newStoreCommand("container ls", true)
	size := c.BoolP("size", "s", false, "")
	s, err := onStore(c, args, 0, 0)
	if s == nil || err != nil {
		return err
	}
	containers, err := s.Containers()
	if err != nil {
		return err
	}
	list := []listedContainer{}
	for _, k := range containers {
		l := listedContainer{Container: k, Mounted: s.Mounted(k)}
		if *size {
			u, err := s.UsageOf(k.Name)
			if err != nil {
				return fmt.Errorf("container %s: %w", k.Name, err)
			}
			l.Usage = &u
		}
		list = append(list, l)
	}
	if c.json {
		return printJSON(list)
	}
	return printContainers(list, *size)
}

func printContainers(list []listedContainer, size bool) error {
	heading := "NAME\tLAYER\tCREATED\tMOUNTED"
	if size {
		heading = "NAME\tLAYER\tCREATED\tSIZE\tMOUNTED"
	}
	var rows [][]string
	for _, l := range list {
		row := []string{l.Name, shortID(l.Layer), l.Created.Local().Format(time.DateTime)}
		if size {
			row = append(row, units.Decimal(l.Usage.Bytes))
		}
		rows = append(rows, append(row, l.Mounted))
	}
	return table(heading, rows)
}

func containerChanges(args []string) error {
	c := newStoreCommand("container changes", true)
	s, err := onStore(c, args, 1, 1)
	if s == nil || err != nil {
		return err
	}
	return printChanges(c.json, func(emit func(*branches.Difference) error) error { return s.Changes(c.Arg(0), emit) })
}

func containerDiff(args []string) error {
	c := newStoreCommand("container diff", false)
	out := c.StringP("output", "o", "-", "")
	s, err := onStore(c, args, 1, 1)
	if s == nil || err != nil {
		return err
	}
	return writeTar("container diff", *out, func(w io.Writer) error { return s.Diff(c.Arg(0), w) })
}

func containerCommit(args []string) error {
	c := newStoreCommand("container commit", false)
	s, err := onStore(c, args, 2, 2)
	if s == nil || err != nil {
		return err
	}
	bar := newProgress("committing "+c.Arg(0), -1)
	l, err := s.Commit(c.Arg(0), c.Arg(1))
	bar.done()
	if err != nil {
		return err
	}
	fmt.Println(l.ID)
	return nil
}
