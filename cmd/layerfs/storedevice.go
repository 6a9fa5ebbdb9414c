package main

import (
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/layers"
)

var deviceCommands = map[string]func(args []string) error{"resize": deviceResize, "deactivate": deviceDeactivate, "convert": deviceConvert}

func cmdDevice(args []string) error { return subcommand("device", deviceCommands, args) }

func deviceResize(args []string) error {
	c := newStoreCommand("device resize", false)
	s, err := onStore(c, args, 1, 1)
	if s == nil || err != nil {
		return err
	}
	size, err := parseSize(c.Arg(0))
	if err != nil {
		return err
	}
	return s.ResizePool(size)
}

func deviceDeactivate(args []string) error {
	c := newStoreCommand("device deactivate", false)
	s, err := onStore(c, args, 0, 0)
	if s == nil || err != nil {
		return err
	}
	return s.Deactivate()
}

func deviceConvert(args []string) error {
	c := newStoreCommand("device convert", false)
	to := c.String("to", "", "")
	if done, err := c.parse(args, 0, 0); done || err != nil {
		return err
	}
	if *to != layers.Thin && *to != layers.DeviceMapper {
		return errs.New(errs.Usage, "device convert: --to thin or --to devicemapper is wanted")
	}
	root, err := c.storeRoot()
	if err != nil {
		return err
	}
	return layers.Move(c.config(root), *to)
}
