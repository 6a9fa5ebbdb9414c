package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
)

// version is set by the linker.
var version = ""

// commands are the subcommands.
var commands = map[string]func(args []string) error{
	"mount":    cmdMount,
	"umount":   cmdUmount,
	"status":   cmdStatus,
	"branches": cmdBranches,
	"remount":  cmdRemount,
	"trace":    cmdTrace,
	"changes":  cmdChanges,
	"check":    cmdCheck,
	"settle":   cmdSettle,
	"convert":  cmdConvert,
	"diff":     cmdDiff,
	"apply":    cmdApply,
	"pool":     cmdPool,
	"thin":     cmdThin,

	"layer":     cmdLayer,
	"container": cmdContainer,
	"info":      cmdInfo,
	"device":    cmdDevice,

	poolProcess:  runPoolProcess,
	poolChecker:  runPoolChecker,
	poolLauncher: runPoolLauncher,
	poolMaker:    runPoolMaker,

	mountsProcess: runMountsProcess,
}

func main() {
	code, err := dispatch(os.Args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "layerfs: %s\n", oneLine(err.Error()))
	}
	os.Exit(code)
}

// dispatch runs the program as its name and first argument say and returns
// the exit code.
func dispatch(argv []string) (int, error) {
	switch filepath.Base(argv[0]) {
	case "mount.layerfs", "mount.fuse.layerfs", "mount.fuse3.layerfs":
		return anyFailure(runHelper(argv[1:]))
	case "fuse-overlayfs":
		return anyFailure(runDropIn(argv[1:]))
	}
	args, err := takeGlobal(argv[1:])
	if err != nil {
		return classCode(err)
	}
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usageText)
		return int(errs.Usage), nil
	}
	switch name := args[0]; name {
	case "help", "--help", "-h":
		return 0, cmdHelp(args[1:])
	case "version", "--version", "-V":
		printVersion()
		return 0, nil
	default:
		if run := commands[name]; run != nil {
			return classCode(run(args[1:]))
		}
	}
	return anyFailure(runDropIn(argv[1:]))
}

// classCode is the exit code of a subcommand.
func classCode(err error) (int, error) {
	var status exitStatus
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &status):
		return int(status), nil
	}
	return int(errs.Of(err)), err
}

// anyFailure is the exit code of the drop-in and the helper.
func anyFailure(err error) (int, error) {
	if err == nil {
		return 0, nil
	}
	return int(errs.Failed), err
}

func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

func printVersion() { fmt.Printf("layerfs: version %s\n", versionString()) }

func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}

// warn says something that does not stop a mount.
func warn(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "layerfs: %s\n", oneLine(fmt.Sprintf(format, args...)))
}
