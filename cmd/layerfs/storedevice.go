package main

var deviceCommands = map[string]func(args []string) error{"resize": deviceResize, "deactivate": deviceDeactivate}

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
