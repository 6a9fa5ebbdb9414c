package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sandbox"
)

// Commands that only `layerfs run` itself uses; see package sandbox.
const (
	runHolder = "run-holder"
	runInit   = "run-init"
)

func init() {
	commandHelp["run"] = `Usage: layerfs run [--rm] [-v HOST:PATH[:ro]]... [--lower DIR] [NAME] -- COMMAND...

Runs a command in a root directory that looks like DIR, without it like the
machine's own, and that it can change without DIR being changed. Needs no
privileges: in a user namespace the command is root. It has /proc, /sys, /dev, the
network of the machine and its resolv.conf and hosts. What is mounted below DIR is
not seen: show it with -v.

With NAME the changes are kept and the next run of that NAME goes on with them;
without, they are thrown away.

  --lower DIR         the directory that is seen; "/" without
  -v HOST:PATH[:ro]   shows HOST, a file or directory, as PATH; changes go to HOST
  --rm                throws the changes of NAME away afterwards
  --verbose           says what mounts the root directory, and why
  --root DIR          where changes are kept

The exit code is that of the command, 128+N if signal N ended it; 125 when layerfs
failed, 126 when the command cannot be executed, 127 when it is not there.

Example:
  layerfs run -- sh -c 'rm -rf /usr/share/doc; du -sh /usr'
  layerfs run -v $PWD:/src --lower /image build1 -- make -C /src
`
	commands["run"] = cmdRun
	commands[runHolder] = cmdRunHolder
	commands[runInit] = cmdRunInit
}

// runRequest is what `layerfs run` was asked for.
type runRequest struct {
	Store   string // where changes are kept
	Lower   string // absolute
	Name    string // "" for changes that are thrown away
	Remove  bool
	Verbose bool
	Volumes []sandbox.Volume
	Command []string
	Env     []string
	Dir     string // the caller's working directory
}

// exitStatus is the exit code of a command that was run: it has had its say.
type exitStatus int

func (exitStatus) Error() string { return "" }

// cmdRun is the caller (package sandbox).
func cmdRun(args []string) error {
	req, done, err := parseRun(args)
	if err != nil {
		return errs.New(sandbox.Failed, "%w", err)
	}
	if done {
		return nil
	}
	data, err := json.Marshal(req)
	if err != nil {
		return err
	}
	code, err := sandbox.Launch(runHolder, data)
	if err != nil {
		return errs.New(sandbox.Failed, "run: %w", err)
	}
	return exitStatus(code)
}

func parseRun(args []string) (req runRequest, done bool, err error) {
	c := newCommand("run", false)
	c.StringVar(&req.Store, "root", storeRoot(), "")
	c.StringVar(&req.Lower, "lower", "/", "")
	c.BoolVar(&req.Remove, "rm", false, "")
	c.BoolVar(&req.Verbose, "verbose", false, "")
	volumes := c.StringArrayP("volume", "v", nil, "")
	if done, err := c.parse(args, 0, len(args)); done || err != nil {
		return req, done, err
	}
	dash := c.ArgsLenAtDash()
	switch {
	case dash < 0 || dash == c.NArg():
		return req, false, errs.New(errs.Usage, "run: the command is missing: it follows -- (see `layerfs run --help`)")
	case dash > 1:
		return req, false, errs.New(errs.Usage, "run: unexpected operand %q before -- (see `layerfs run --help`)", c.Arg(1))
	case dash == 1:
		req.Name = c.Arg(0)
	}
	req.Command, req.Env = c.Args()[dash:], os.Environ()
	for _, v := range *volumes {
		volume, err := parseVolume(v)
		if err != nil {
			return req, false, err
		}
		req.Volumes = append(req.Volumes, volume)
	}
	for _, path := range []*string{&req.Store, &req.Lower} {
		if *path, err = filepath.Abs(*path); err != nil {
			return req, false, err
		}
	}
	req.Dir, _ = os.Getwd()
	return req, false, nil
}

// parseVolume reads HOST:PATH[:ro].
func parseVolume(text string) (v sandbox.Volume, err error) {
	f := strings.Split(text, ":")
	if len(f) == 3 && (f[2] == "ro" || f[2] == "rw") {
		v.ReadOnly = f[2] == "ro"
		f = f[:2]
	}
	if len(f) != 2 || f[0] == "" || !filepath.IsAbs(f[1]) || filepath.Clean(f[1]) == "/" {
		return v, errs.New(errs.Usage, "run: volume %q is not HOST:PATH[:ro] with an absolute PATH", text)
	}
	v.Path = filepath.Clean(f[1])
	if v.Host, err = filepath.Abs(f[0]); err != nil {
		return v, err
	}
	if _, err := os.Stat(v.Host); err != nil {
		return v, errs.New(errs.NotFound, "run: volume %s: %w", text, err)
	}
	v.Host, err = filepath.EvalSymlinks(v.Host)
	return v, err
}

// cmdRunHolder is the holder: it mounts the root directory and unmounts it.
func cmdRunHolder([]string) error {
	nameProcess()
	data, err := sandbox.Await()
	if err != nil {
		return errs.New(sandbox.Failed, "%w", err)
	}
	var req runRequest
	if err := json.Unmarshal(data, &req); err != nil {
		return errs.New(sandbox.Failed, "%s is for layerfs itself: %w", runHolder, err)
	}
	code, err := req.run()
	if err != nil {
		return errs.New(sandbox.Failed, "run: %w", err)
	}
	return exitStatus(code)
}

func (req *runRequest) run() (code int, err error) {
	src, err := openSource(req)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	root, err := src.mount(req.Verbose)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, root.unmount()) }()
	spec := sandbox.Spec{Root: src.point, Volumes: req.Volumes, Command: req.Command, Env: req.Env, Dir: "/"}
	if inside := within(req.Store, req.Lower); inside != "" {
		spec.Hide = []string{inside} // the upper must not be seen in what is below it
	}
	if req.Lower == "/" {
		spec.Dir = req.Dir
	}
	return spec.Run(runInit)
}

// within returns path as it is called inside dir, "" when it does not lie there.
func within(path, dir string) string {
	rel, err := filepath.Rel(dir, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return ""
	}
	return "/" + rel
}

// cmdRunInit is process 1.
func cmdRunInit([]string) error {
	nameProcess()
	code, err := sandbox.Init()
	if err != nil {
		return errs.New(errs.Class(code), "run: %w", err)
	}
	return exitStatus(code)
}
