package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/fs"
	"github.com/layerfs/layerfs/internal/control"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/fusedev"
)

// freeTime is how long a branch may be in use before a change of it is refused.
const freeTime = time.Second

// cmdRemount is `layerfs remount`.
func cmdRemount(args []string) error {
	c := newCommand("remount", false)
	var opts []string
	c.StringArrayVarP(&opts, "options", "o", nil, "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	if len(opts) == 0 {
		return errs.New(errs.Usage, "remount: -o is missing (see `layerfs remount --help`)")
	}
	return remount(c.Arg(0), opts, true)
}

// wantsRemount reports whether mount(8) calls its helper for `mount -o remount`.
func wantsRemount(options []string) bool {
	for _, o := range options {
		if contains(splitOptions(o), "remount") {
			return true
		}
	}
	return false
}

// remount changes the branches and the flags (ro, noexec, …) of a mount. What
// is neither is an error if strict; mount(8) gives all the options that are in
// force before those that it was asked for, and what is no change stays as it is.
func remount(mountpoint string, options []string, strict bool) error {
	var s settings
	var list []branches.Change
	flags := !strict
	for _, o := range options {
		for _, word := range splitOptions(o) {
			change, ok, err := parseChange(word)
			if err != nil {
				return err
			}
			opt, isFlag := flagOptions[word]
			switch {
			case ok:
				list = append(list, change)
			case isFlag:
				flags = true
				if err := opt.apply(&s, ""); err != nil {
					return err
				}
			case strict && word != "remount":
				return errs.New(errs.Usage, "remount: %q is no change of a live mount: use add:, append:, prepend:, del:, mod: or a flag such as ro", word)
			}
		}
	}
	if strict && !flags && len(list) == 0 {
		return errs.New(errs.Usage, "remount: -o names no change (see `layerfs remount --help`)")
	}
	if _, ok := kernelMount(mountpoint); ok {
		return errs.New(errs.Unsupported, "remount: %s is an overlay of the kernel, which takes no changes: mount it with backend=fuse", mountpoint)
	}
	path, err := absolute(mountpoint)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		if err := changeBranches(path, list); err != nil {
			return err
		}
	}
	if !flags {
		return nil
	}
	return fusedev.Remount(path, s.flags)
}

// behindLast is an index of no branch.
const behindLast = math.MaxInt32

// parseChange reads one of add:IDX:BR, ins:IDX:BR, append:BR, prepend:BR,
// del:DIR and mod:BR, also with "=" for the first colon; ok is false for
// something else.
func parseChange(word string) (c branches.Change, ok bool, err error) {
	i := strings.IndexAny(word, ":=")
	if i < 0 {
		return c, false, nil
	}
	verb, rest := word[:i], word[i+1:]
	switch verb {
	case "add", "ins":
		index, br, _ := strings.Cut(rest, ":")
		n, err := strconv.ParseUint(index, 10, 16)
		if err != nil || br == "" {
			return c, true, errs.New(errs.Usage, "%s: use %s:INDEX:DIR=MODE, the topmost branch is 0", word, verb)
		}
		c, rest = branches.Change{Op: branches.Add, Index: int(n)}, br
	case "append":
		c = branches.Change{Op: branches.Add, Index: behindLast}
	case "prepend":
		c = branches.Change{Op: branches.Add}
	case "del":
		c = branches.Change{Op: branches.Del}
	case "mod":
		c = branches.Change{Op: branches.Mod}
	default:
		return c, false, nil
	}
	if c.Op == branches.Mod && !strings.Contains(rest, "=") {
		return c, true, errs.New(errs.Usage, "%s: use mod:DIR=MODE", word)
	}
	c.Spec, err = parseBranch(rest, c.Op == branches.Add && c.Index == 0)
	return c, true, err
}

// request is what goes to the daemon: the changes, and which of the files that
// go along is the directory of each; -1 for one that cannot be opened any more.
type changeRequest struct {
	Changes []branches.Change `json:"changes"`
	File    []int             `json:"file"`
}

// changeBranches has the daemon of the mount make changes, all or none.
func changeBranches(mountpoint string, list []branches.Change) error {
	req := changeRequest{Changes: list}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for i := range list {
		spec := &list[i].Spec
		f, err := openBranchDir(spec)
		if err != nil && list[i].Op != branches.Del {
			return err
		}
		at := -1
		if f != nil {
			at, files = len(files), append(files, f)
		}
		req.File = append(req.File, at)
	}
	return untilFree(func() error { return tryChange(mountpoint, req, files) })
}

// openBranchDir opens the directory of spec with the rights of the caller, and
// makes its path absolute.
func openBranchDir(spec *branches.Spec) (*os.File, error) {
	name := spec.Path
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	spec.Path = abs
	fd, err := unix.Open(abs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		return os.NewFile(uintptr(fd), abs), nil
	case unix.ENOENT:
		return nil, errs.New(errs.NotFound, "branch %s does not exist", name)
	case unix.ENOTDIR:
		return nil, errs.New(errs.Usage, "branch %s is not a directory", name)
	}
	return nil, errs.New(errs.Failed, "branch %s cannot be opened: %w", name, err)
}

// untilFree repeats try while it says that something is in use, for freeTime.
func untilFree(try func() error) error {
	for until := time.Now().Add(freeTime); ; time.Sleep(50 * time.Millisecond) {
		err := try()
		if errs.Of(err) != errs.Busy || time.Now().After(until) {
			return err
		}
	}
}

// tryChange asks who uses what is to go, since only processes know where they
// have their working directory, and then has the change made.
func tryChange(mountpoint string, req changeRequest, files []*os.File) error {
	if removes(req.Changes) {
		var in []fs.InUse
		if err := control.Call(mountpoint, "remembered", req, &in, files...); err != nil {
			return err
		}
		if users := holders(mountpoint, in, false); len(users) > 0 {
			return inUse(in[0].Branch, users)
		}
	}
	var refused []fs.InUse
	if err := control.Call(mountpoint, "change", req, &refused, files...); err != nil {
		return err
	}
	if len(refused) > 0 {
		users := holders(mountpoint, refused, true)
		return inUse(refused[0].Branch, users)
	}
	return nil
}

func removes(list []branches.Change) bool {
	for _, c := range list {
		if c.Op == branches.Del {
			return true
		}
	}
	return false
}

func inUse(branch string, users []string) error {
	return errs.New(errs.Busy, "branch %s is in use: %s", branch, strings.Join(users, "; "))
}

// change makes changes for a client. That a branch is in use is an answer, which
// says of what, not an error.
func (s *session) change(list []branches.Change) (any, error) {
	users, err := s.fs.ChangeBranches(list)
	if len(users) > 0 {
		return users, nil
	}
	return []fs.InUse{}, err
}

// changesFrom reads a request for changes. Paths are only names here: what is
// opened is what came along.
func changesFrom(args json.RawMessage, files []*os.File) ([]branches.Change, error) {
	var req changeRequest
	if err := json.Unmarshal(args, &req); err != nil {
		return nil, errs.New(errs.Usage, "remount: %w", err)
	}
	if len(req.File) != len(req.Changes) {
		return nil, errs.New(errs.Usage, "remount: %w", errors.New("a request that makes no sense"))
	}
	for i := range req.Changes {
		spec := &req.Changes[i].Spec
		spec.Fd = 0
		switch at := req.File[i]; {
		case at >= 0 && at < len(files):
			spec.Fd = int(files[at].Fd())
		case req.Changes[i].Op != branches.Del:
			return nil, errs.New(errs.Usage, "remount: %w", fmt.Errorf("%s came without its directory", spec.Path))
		}
	}
	return req.Changes, nil
}
