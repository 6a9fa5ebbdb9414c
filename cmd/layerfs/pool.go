package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/client"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/units"
)

var poolCommands = map[string]func(args []string) error{
	"create": poolCreate, "status": poolStatus, "resize": poolResize, "check": poolCheck, "trim": poolTrim,
	"message": poolMessage, "dump": poolDump, "wait": poolWait, "restore": poolRestore, "mount": poolMount, "serve": poolServe,
}

func cmdPool(args []string) error { return subcommand("pool", poolCommands, args) }

// subcommand runs one of the commands below a command.
func subcommand(group string, commands map[string]func(args []string) error, args []string) error {
	switch {
	case len(args) == 0:
		return errs.New(errs.Usage, "%s: a command is missing (see `layerfs %s --help`)", group, group)
	case args[0] == "-h" || args[0] == "--help":
		return cmdHelp([]string{group})
	}
	if run := commands[args[0]]; run != nil {
		return run(args[1:])
	}
	names := make([]string, 0, len(commands))
	for name := range commands {
		names = append(names, name)
	}
	hint := ""
	if near := nearest(args[0], names); near != "" {
		hint = fmt.Sprintf("; did you mean '%s'?", near)
	}
	return errs.New(errs.Usage, "%s: unknown command %q%s (see `layerfs %s --help`)", group, args[0], hint, group)
}

// openPool connects to the process of a pool.
func openPool(dir string) (*client.Client, error) {
	return client.Open(dir, client.Program(poolProcess))
}

// withPool runs use on the pool in dir.
func withPool(dir string, use func(*client.Client) error) error {
	c, err := openPool(dir)
	if err != nil {
		return err
	}
	err = use(c)
	if e := c.Close(); err == nil {
		err = e
	}
	return err
}

// withSettled is withPool for those who ask about blocks.
func withSettled(dir string, use func(*client.Client) error) error {
	return withPool(dir, func(p *client.Client) error {
		if err := p.Settle(); err != nil {
			return err
		}
		return use(p)
	})
}

func poolCreate(args []string) error {
	c := newCommand("pool create", false)
	size := c.String("data-size", "100G", "")
	block := c.String("block-size", "64K", "")
	lowWater := c.String("low-water", "10%", "")
	timeout := c.Duration("no-space-timeout", time.Minute, "")
	threshold := c.String("autoextend-threshold", "", "")
	percent := c.String("autoextend-percent", "", "")
	maxSize := c.String("max-size", "0", "")
	minFree := c.String("min-free-space", "0%", "")
	o := blockstore.Options{}
	c.BoolVar(&o.ErrorIfNoSpace, "error-if-no-space", false, "")
	c.BoolVar(&o.SkipZeroing, "skip-block-zeroing", false, "")
	c.BoolVar(&o.NoDiscardPassdown, "no-discard-passdown", false, "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	o.NoSpaceTimeout = *timeout
	if (*threshold == "") != (*percent == "") {
		return errs.New(errs.Usage, "--autoextend-threshold and --autoextend-percent need each other")
	}
	var blockSize int64
	err := first(
		func() (err error) { o.DataSize, err = parseSize(*size); return err },
		func() (err error) { blockSize, err = parseSize(*block); return err },
		func() (err error) { o.MaxSize, err = parseSize(*maxSize); return err },
		func() (err error) { o.MinFree, err = parsePercent(*minFree); return err },
		func() (err error) {
			o.AutoextendAt, err = optionalPercent(*threshold)
			return err
		},
		func() (err error) { o.AutoextendBy, err = optionalPercent(*percent); return err },
		func() (err error) { o.LowWater, err = parseLowWater(*lowWater, o.DataSize, blockSize); return err },
	)
	if err != nil {
		return err
	}
	if blockSize > blockstore.MaxBlockSize {
		return errs.New(errs.Usage, "block size %s: must be a multiple of 64K, from 64K to 1G", *block)
	}
	o.BlockSize = int(blockSize)
	return blockstore.Create(c.Arg(0), o)
}

// first runs steps until one fails.
func first(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// parseLowWater reads a mark, as a percentage of the pool or as a size, in blocks.
func parseLowWater(s string, dataSize, blockSize int64) (uint64, error) {
	if blockSize <= 0 {
		return 0, errs.New(errs.Usage, "block size %d: must be a multiple of 64K, from 64K to 1G", blockSize)
	}
	if strings.HasSuffix(s, "%") {
		n, err := parsePercent(s)
		if err == nil && n > 100 {
			err = errs.New(errs.Usage, "low-water mark %s: must be at most 100%%", s)
		}
		return uint64(dataSize/blockSize) * uint64(n) / 100, err
	}
	n, err := parseSize(s)
	return uint64(n / blockSize), err
}

func poolStatus(args []string) error {
	c := newCommand("pool status", true)
	dm := c.Bool("dm", false, "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	return withSettled(c.Arg(0), func(p *client.Client) error {
		s, err := p.Status()
		switch {
		case err != nil:
			return err
		case *dm:
			fmt.Println(s.DM())
			return nil
		case c.json:
			return printJSON(s)
		}
		printStatus(c.Arg(0), &s)
		return nil
	})
}

// printStatus prints the fields of `docker info` in its order, and then what
// it had no field for.
func printStatus(dir string, s *blockstore.Status) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		abs = dir
	}
	blocks := func(n uint64) string { return units.Decimal(int64(n) * s.BlockSize) }
	minFree := uint64(s.Options.MinFree) * s.Blocks / 100
	lines := [][2]string{
		{"Pool Name", filepath.Base(abs)},
		{"Pool Blocksize", units.Decimal(s.BlockSize)},
		{"Data file", filepath.Join(abs, "data")},
		{"Metadata file", filepath.Join(abs, "index")},
		{"Data Space Used", blocks(s.Used)},
		{"Data Space Total", blocks(s.Blocks)},
		{"Data Space Available", blocks(s.Available)},
		{"Metadata Space Used", units.Decimal(s.IndexBytes)},
		{"Metadata Space Total", units.Decimal(s.MetadataTotal())},
		{"Metadata Space Available", units.Decimal(s.HostFree)},
		{"Thin Pool Minimum Free Space", blocks(minFree)},
		{"Mode", modeText(s)},
		{"Devices", fmt.Sprint(s.Devices)},
		{"Virtual Space Total", fmt.Sprintf("%s (%.4g times the pool)", units.Decimal(s.Virtual), float64(s.Virtual)/float64(s.Blocks)/float64(s.BlockSize))},
		{"Transaction Id", fmt.Sprint(s.Txid)},
		{"Low Water Mark", blocks(s.Options.LowWater)},
		{"Waiting To Be Punched", blocks(s.Pending)},
	}
	for _, l := range lines {
		fmt.Printf("%s: %s\n", l[0], l[1])
	}
}

func modeText(s *blockstore.Status) string {
	if s.Cause == "" {
		return s.Mode
	}
	return s.Mode + ", " + s.Cause
}

func poolResize(args []string) error {
	c := newCommand("pool resize", false)
	if done, err := c.parse(args, 2, 2); done || err != nil {
		return err
	}
	size, err := parseSize(c.Arg(1))
	if err != nil {
		return err
	}
	return withPool(c.Arg(0), func(p *client.Client) error { return p.Grow(size) })
}

func poolTrim(args []string) error {
	c := newCommand("pool trim", false)
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	return withPool(c.Arg(0), (*client.Client).Trim)
}

func poolMessage(args []string) error {
	c := newCommand("pool message", false)
	if done, err := c.parse(args, 2, 100); done || err != nil {
		return err
	}
	return withPool(c.Arg(0), func(p *client.Client) error { return p.Message(strings.Join(c.Args()[1:], " ")) })
}

func poolDump(args []string) error {
	c := newCommand("pool dump", false)
	export := c.Bool("export", false, "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	return withPool(c.Arg(0), func(p *client.Client) error { return p.Dump(os.Stdout, *export) })
}

func poolWait(args []string) error {
	c := newCommand("pool wait", false)
	event := c.String("event", string(blockstore.LowWaterEvent), "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return withPool(c.Arg(0), func(p *client.Client) error { return p.Wait(ctx, blockstore.Event(*event)) })
}

func poolRestore(args []string) error {
	c := newCommand("pool restore", false)
	data := c.String("data", "", "")
	metadata := c.String("metadata", "", "")
	sidecar := c.String("sidecar", "", "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	if *data == "" {
		return errs.New(errs.Usage, "pool restore: --data FILE is missing: the data file that the metadata belongs to")
	}
	side, err := findSidecar(*sidecar, *data)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(c.Arg(0), "index")); err == nil {
		unlock, err := stopPool(c.Arg(0))
		if err != nil {
			return err
		}
		defer unlock()
	}
	if *metadata == "" {
		return blockstore.Restore(c.Arg(0), *data, os.Stdin, side)
	}
	return restoreMetadata(c.Arg(0), *data, *metadata, side)
}

// findSidecar reads the names and sizes that belong to a data file: the
// sidecar, or what Docker kept beside its loop-lvm pair.
func findSidecar(path, data string) (*blockstore.Sidecar, error) {
	if path != "" {
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
		return blockstore.ReadSidecar(path)
	}
	side, err := blockstore.ReadSidecar(blockstore.SidecarPath(data))
	if _, absent := os.Lstat(blockstore.SidecarPath(data)); err != nil || absent == nil {
		return side, err
	}
	side.Devices, err = blockstore.DockerDevices(filepath.Join(filepath.Dir(data), "..", "metadata"))
	return side, err
}

// restoreMetadata restores from dm-thin's own metadata, which thin_dump reads.
func restoreMetadata(dir, data, metadata string, side *blockstore.Sidecar) error {
	tool, err := lookTool("thin_dump")
	if err != nil {
		return errs.New(errs.Unsupported, "thin_dump is missing: it reads dm-thin's metadata (Debian: thin-provisioning-tools)")
	}
	cmd := exec.Command(tool, metadata)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = blockstore.Restore(dir, data, out, side)
	if e := cmd.Wait(); e != nil && stderr.Len() > 0 {
		return errs.New(errs.Corrupt, "thin_dump %s: %s", metadata, strings.TrimSpace(stderr.String()))
	}
	return err
}

// lookTool finds a program of the system's administrator.
func lookTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", errs.New(errs.Unsupported, "%s is not installed", name)
}
