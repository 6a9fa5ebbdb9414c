package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/layerfs/layerfs/internal/errs"
)

const usageText = `Usage:
  layerfs mount [-f] [-d] [-o OPT[,OPT...]]... MOUNTPOINT
  layerfs -o OPT[,OPT...] MOUNTPOINT            drop-in for fuse-overlayfs
  layerfs umount MOUNTPOINT
  layerfs status MOUNTPOINT
  layerfs branches MOUNTPOINT
  layerfs remount -o add:INDEX:BRANCH,append:BRANCH,prepend:BRANCH,del:DIR,mod:BRANCH MOUNTPOINT
  layerfs trace MOUNTPOINT PATH
  layerfs changes MOUNTPOINT | --upper DIR [--lower DIR]...
  layerfs settle MOUNTPOINT | [--workdir DIR] [--lower DIR]... UPPERDIR
  layerfs check [--repair] [--workdir DIR] [--lower DIR]... UPPERDIR
  layerfs convert --to aufs|overlay|xattr UPPERDIR
  layerfs diff MOUNTPOINT | --upper DIR [--lower DIR]... [-o FILE.tar]
  layerfs apply --to DIR [--whiteout DIALECT] FILE.tar
  layerfs layer import|import-image|ls|diff|rm ...
  layerfs container create|mount|umount|ls|rm|changes|diff|commit ...
  layerfs info
  layerfs pool create|status|resize|check|trim|message|dump|restore|wait|mount|serve POOL ...
  layerfs thin create|snap|ls|rm|resize|status|delta|trace|read|write POOL ...
  layerfs run [--rm] [-v HOST:PATH[:ro]]... [--from LAYER | --lower DIR] [NAME] -- COMMAND...
  layerfs probe [--json] [DIR]
  layerfs help [COMMAND]
  layerfs version

Example:
  layerfs mount -o lowerdir=/image:/base,upperdir=/changes,workdir=/work /merged
`

const optionText = `
Options for -o:
  lowerdir=A:B:C           read-only branches, the first on top; \: for a colon
  upperdir=DIR             where changes go; needs workdir=
  workdir=DIR              an empty directory on the same file system as upperdir
  br=DIR=MODE:...          branches in the AUFS manner (modes rw, ro, rr); also dirs=
  backend=auto|fuse|overlay            what mounts the stack; auto: the kernel if it will do
  whiteout=auto|aufs|overlay|xattr     how deletions are written
  redirect_dir=on|off      rename directories of lower branches
  fsync=auto|strict|volatile, volatile how much of a copy-up is synced
  copyup=auto|block|full   how big lower files are copied up: all of it, or changed
                           blocks only; copyup_threshold=SIZE, pool=DIR
  settle=idle|umount       when files copied up by blocks become plain ones
  timeout=SECONDS          how long the kernel may cache names and attributes
  passthrough              the kernel reads and writes files of the upper itself (root)
  create=tdp|rr|mfs[:SEC]|mfsrr:LOW[:SEC]|pmfs[:SEC]|pmfsrr:LOW[:SEC]|tdmfs:LOW[:SEC]
                           which of several writable branches gets new files
  cpup=tdp|bup|bu          which gets copies of lower files
  diropq=always|whiteouted which new directories are opaque
  sum                      df adds up all branches
  shwh                     shows whiteouts; needs ro
  udba=none|reval|notify   notice changes made behind the mount's back: within a
                           second, or at once by watching directories in use
  squash_to_root, squash_to_uid=N, squash_to_gid=N
  uidmapping=A:B:LEN:..., gidmapping=A:B:LEN:...
  xattr_permissions=0|1|2, static_nlink, noxattrs, noacl, ino32_t, userxattr
  index=on, metacopy=on    features of kernel overlay
  ro, nosuid, nodev, noexec, noatime, allow_other, default_permissions, fsname=, subtype=
`

// commandHelp is what `layerfs COMMAND --help` prints.
var commandHelp = map[string]string{
	"mount": `Usage: layerfs mount [-f|--foreground] [-d|--debug] [-o OPT[,OPT...]]... MOUNTPOINT

Shows several directories as one. Returns when the mount is live; with -f it
stays until the unmount, a SIGINT or a SIGTERM.

Example:
  layerfs mount -o lowerdir=/image,upperdir=/changes,workdir=/work /merged
  layerfs mount -o br=/changes=rw:/image=ro /merged
` + optionText,
	"umount": `Usage: layerfs umount [-l|--lazy] MOUNTPOINT

Unmounts and waits until the daemon is gone. With --lazy a busy mount
disappears at once and its daemon ends with the last open file.

Example:
  layerfs umount /merged
`,
	"status": `Usage: layerfs status [--json] MOUNTPOINT

Shows backend, dialect, caches, operations and copy-ups of a mount.

Example:
  layerfs status /merged
`,
	"branches": `Usage: layerfs branches [--json] MOUNTPOINT

Lists the branches of a mount, the topmost first.

Example:
  layerfs branches /merged
`,
	"remount": `Usage: layerfs remount -o CHANGE[,CHANGE...] MOUNTPOINT

Changes the branches of a live mount, from left to right, all or none:
  add:INDEX:DIR=MODE    a new branch at that position, 0 being the top
  append:DIR=MODE       below all others
  prepend:DIR=MODE      above all others
  del:DIR               removes a branch
  mod:DIR=MODE          gives a branch another mode, rw, ro or rr, and attributes
A branch that is in use is not removed: the processes that use it are named
(exit code 4). Flags such as ro and noexec can be changed too.

Example:
  layerfs remount -o prepend:/patch=ro,del:/plugins/old /merged
`,
	"trace": `Usage: layerfs trace [--json] MOUNTPOINT PATH

Says which branch answers for PATH, and why. PATH is relative to MOUNTPOINT.

Example:
  layerfs trace /merged etc/passwd
`,
	"changes": `Usage: layerfs changes [--json] MOUNTPOINT
       layerfs changes [--json] [--pool POOL] --upper DIR [--lower DIR]...

Lists what was added (A), changed (C) and deleted (D), like docker diff.

Example:
  layerfs changes /merged
  layerfs changes --upper /changes --lower /image
`,
	"diff":  diffHelp,
	"apply": applyHelp,
}

func cmdHelp(args []string) error {
	if text := commandHelp[strings.Join(args, " ")]; text != "" {
		fmt.Print(text)
		return nil
	}
	fmt.Print(usageText + optionText)
	return nil
}

// command is the flag set of a subcommand.
type command struct {
	*pflag.FlagSet
	json bool
	help bool
}

func newCommand(name string, listing bool) *command {
	c := &command{FlagSet: pflag.NewFlagSet(name, pflag.ContinueOnError)}
	c.SetOutput(os.Stderr)
	c.Usage = func() {}
	c.BoolVarP(&c.help, "help", "h", false, "")
	if listing {
		c.BoolVar(&c.json, "json", false, "")
	}
	return c
}

// parse reads the arguments and wants between lo and hi operands. done
// means that the help was asked for and given.
func (c *command) parse(args []string, lo, hi int) (done bool, err error) {
	if err := c.Parse(args); err != nil {
		return false, errs.New(errs.Usage, "%s: %w (see `layerfs %s --help`)", c.Name(), err, c.Name())
	}
	if c.help {
		fmt.Print(commandHelp[c.Name()])
		return true, nil
	}
	switch n := c.NArg(); {
	case n < lo:
		return false, errs.New(errs.Usage, "%s: an operand is missing (see `layerfs %s --help`)", c.Name(), c.Name())
	case n > hi:
		return false, errs.New(errs.Usage, "%s: unexpected operand %q (see `layerfs %s --help`)", c.Name(), c.Arg(hi), c.Name())
	}
	return false, nil
}
