package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/kernelbackend"
)

func init() {
	commandHelp["probe"] = `Usage: layerfs probe [--json] [DIR]

Tries what this machine has for layers and containers, and says of each yes or
no and what is missing: kernel overlay, as this user and in a user namespace,
with its features; btrfs, device-mapper's thin pools, FUSE, loop devices,
reflinks, fuse2fs. DIR is where layers are to lie, without it the usual store: its
file system decides on overlay, btrfs and reflinks. Nothing is left behind.

Example:
  layerfs probe /var/lib/layerfs
`
	commands["probe"] = cmdProbe
	commands[kernelbackend.ProbeCommand] = kernelbackend.ProbeProcess
}

func cmdProbe(args []string) error {
	c := newCommand("probe", true)
	if done, err := c.parse(args, 0, 1); done || err != nil {
		return err
	}
	dir := c.Arg(0)
	if dir == "" {
		dir = nearStore()
	}
	list, err := kernelbackend.Probe(dir)
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(list)
	}
	for _, b := range list {
		printAnswer("", b.Name, b.OK, b.Reason)
		for _, f := range b.Features {
			printAnswer("  ", f.Name, f.OK, f.Reason)
		}
	}
	return nil
}

func printAnswer(indent, name string, ok bool, reason string) {
	answer := "no   " + oneLine(reason)
	if ok {
		answer = "yes"
	}
	fmt.Printf("%-18s %s\n", indent+name, answer)
}

// nearStore is the directory nearest to the usual store that exists and can be
// written; without one it is that for temporary files.
func nearStore() string {
	dir, err := defaultRoot()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil && unix.Access(dir, unix.W_OK) == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	return os.TempDir()
}
