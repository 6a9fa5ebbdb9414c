package main

import (
	"fmt"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
)

// invocation is a request for a mount, whatever face it came through.
type invocation struct {
	*settings
	mountpoint string
	foreground bool
	debug      bool
	why        string // the reason for the backend, for status
}

// cmdMount is `layerfs mount`.
func cmdMount(args []string) error {
	c := newCommand("mount", false)
	var inv invocation
	var opts []string
	c.StringArrayVarP(&opts, "options", "o", nil, "")
	c.BoolVarP(&inv.foreground, "foreground", "f", false, "")
	c.BoolVarP(&inv.debug, "debug", "d", false, "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	s, err := parseOptions(true, opts)
	if err != nil {
		return err
	}
	if s.copyUp == "" && s.pool == "" {
		s.copyUp = "auto" // the best way there is
	}
	inv.settings, inv.mountpoint = s, c.Arg(0)
	inv.foreground = inv.foreground || inv.debug
	if done, err := inv.mountKernels(); done || err != nil {
		return err
	}
	return inv.run()
}

// runDropIn is the command line of fuse-overlayfs.
func runDropIn(args []string) error {
	p := parseLoose(args)
	switch {
	case p.has("-h", "--help"):
		return cmdHelp(nil)
	case p.has("-V", "--version"):
		printVersion()
		return nil
	}
	debug := p.has("-d", "--debug")
	inv := invocation{foreground: debug || p.has("-f", "--foreground"), debug: debug}
	// -s is libfuse's: one thread only.
	p.warnUnknown("-d", "--debug", "-f", "--foreground", "-s")
	if len(p.operands) == 0 {
		return errs.New(errs.Usage, "no mountpoint given")
	}
	return inv.runWith(p, p.operands[len(p.operands)-1])
}

// runHelper is what mount(8) calls: SOURCE TARGET [-sfnvrw] [-t TYPE] -o OPTS.
// There -f means to do everything but the mount itself.
func runHelper(args []string) error {
	p := parseLoose(args)
	switch {
	case p.has("-h", "--help"):
		return cmdHelp(nil)
	case p.has("-V", "--version"):
		printVersion()
		return nil
	}
	p.warnUnknown("-s", "-f", "-n", "-v", "-r", "-w", "-i")
	if len(p.operands) != 2 {
		return errs.New(errs.Usage, "usage: mount.layerfs SOURCE MOUNTPOINT [-o OPTIONS]")
	}
	if wantsRemount(p.options) {
		return remount(p.operands[1], p.options, false)
	}
	if p.has("-r") {
		p.options = append(p.options, "ro")
	}
	// mount(8) -a recognises by the source what is mounted already. A
	// fsname= option still wins.
	source := "fsname=" + strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`).Replace(p.operands[0])
	p.options = append([]string{source}, p.options...)
	if p.has("-f") {
		_, err := parseOptions(false, p.options)
		return err
	}
	var inv invocation
	return inv.runWith(p, p.operands[1])
}

func (inv *invocation) runWith(p *looseArgs, mountpoint string) error {
	s, err := parseOptions(false, p.options)
	if err != nil {
		return err
	}
	inv.settings, inv.mountpoint = s, mountpoint
	if s.backend == "overlay" {
		warn("option backend=overlay is ignored: only `layerfs mount` mounts kernel overlay")
	}
	inv.why = "the program was called in the manner of fuse-overlayfs or of mount(8)"
	return inv.run()
}

// looseArgs is a command line that is read without knowing all its flags.
type looseArgs struct {
	options  []string // the arguments of -o
	flags    []string
	operands []string
}

// parseLoose reads options before, between and after the operands.
func parseLoose(args []string) *looseArgs {
	p := &looseArgs{}
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "--":
			p.operands = append(p.operands, args[i+1:]...)
			return p
		case (a == "-o" || a == "--options") && i+1 < len(args):
			i++
			p.options = append(p.options, args[i])
		case strings.HasPrefix(a, "-o") && a != "-o":
			p.options = append(p.options, a[2:])
		case a == "-t" && i+1 < len(args):
			i++ // the type, which mount.fuse3 strips as well
		case strings.HasPrefix(a, "-") && a != "-":
			p.flags = append(p.flags, splitFlags(a)...)
		default:
			p.operands = append(p.operands, a)
		}
	}
	return p
}

// splitFlags takes -fd apart when every letter is a flag on its own.
func splitFlags(a string) []string {
	if strings.HasPrefix(a, "--") || strings.Trim(a[1:], "dfhnrsvwV") != "" {
		return []string{a}
	}
	var out []string
	for _, c := range a[1:] {
		out = append(out, fmt.Sprintf("-%c", c))
	}
	return out
}

func (p *looseArgs) has(names ...string) bool {
	for _, f := range p.flags {
		if contains(names, f) {
			return true
		}
	}
	return false
}

func (p *looseArgs) warnUnknown(known ...string) {
	for _, f := range p.flags {
		if !contains(known, f) {
			warn("unknown flag %s is ignored", f)
		}
	}
}
