package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sandbox"
	"github.com/layerfs/layerfs/layers/driver"
)

// Commands that only `layerfs run` itself uses; see package sandbox.
const (
	runHolder = "run-holder"
	runInit   = "run-init"
)

func init() {
	commandHelp["run"] = `Usage: layerfs run [--rm] [-v HOST:PATH[:ro]]... [--from LAYER | --lower DIR] [NAME] -- COMMAND...

Runs a command in a root directory that looks like a layer of the store or like
DIR, without either like the machine's own, and that it can change without these
being changed. Needs no privileges: in a user namespace the command is root. It
has /proc, /sys, /dev, the network of the machine and its resolv.conf and hosts.
What is mounted below DIR is not seen: show it with -v.

With NAME the changes are kept and the next run of that NAME goes on with them;
without, they are thrown away. NAME is a container of the store, made with --from
or by layerfs container create; without --from and such a container it is a
directory of changes, ROOT/runs/NAME/upper.

  --from LAYER        makes a container on LAYER
  --lower DIR         the directory that is seen; "/" without
  -v HOST:PATH[:ro]   shows HOST, a file or directory, as PATH; changes go to HOST
  --rm                throws the changes of NAME away afterwards
  --verbose           says what mounts the root directory, and why
` + storeOptionsHelp + `
The exit code is that of the command, 128+N if signal N ended it; 125 when layerfs
failed, 126 when the command cannot be executed, 127 when it is not there.

Example:
  layerfs run -- sh -c 'rm -rf /usr/share/doc; du -sh /usr'
  layerfs run -v $PWD:/src --from debian build1 -- make -C /src
`
	commands["run"] = cmdRun
	commands[runHolder] = cmdRunHolder
	commands[runInit] = cmdRunInit
}

// runRequest is what `layerfs run` was asked for.
type runRequest struct {
	Store   string         // where changes are kept; absolute
	RunDir  string         // in it, made and locked by the caller
	From    string         // a layer
	Lower   string         // absolute
	Name    string         // "" for changes that are thrown away
	Source  *driver.Source // of a container of the store; nil when it is none
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
	c := newRunCommand()
	done, err := c.parseRun(args)
	if done {
		return nil
	}
	code := 0
	if err == nil {
		code, err = c.run()
	}
	if err != nil {
		return errs.New(sandbox.Failed, "%w", err)
	}
	return exitStatus(code)
}

// runCommand is `layerfs run` as its caller sees it.
type runCommand struct {
	*storeCommand
	runRequest
	volumes []string
}

func newRunCommand() *runCommand {
	c := &runCommand{storeCommand: newStoreCommand("run", false)}
	c.StringVar(&c.From, "from", "", "")
	c.StringVar(&c.Lower, "lower", "", "")
	c.BoolVar(&c.Remove, "rm", false, "")
	c.BoolVar(&c.Verbose, "verbose", false, "")
	c.StringArrayVarP(&c.volumes, "volume", "v", nil, "")
	return c
}

func (c *runCommand) parseRun(args []string) (done bool, err error) {
	if done, err := c.parse(args, 0, len(args)); done || err != nil {
		return done, err
	}
	dash := c.ArgsLenAtDash()
	switch {
	case dash < 0 || dash == c.NArg():
		return false, errs.New(errs.Usage, "run: the command is missing: it follows -- (see `layerfs run --help`)")
	case dash > 1:
		return false, errs.New(errs.Usage, "run: unexpected operand %q before -- (see `layerfs run --help`)", c.Arg(1))
	case c.From != "" && c.Lower != "":
		return false, errs.New(errs.Usage, "run: give either --from or --lower, not both")
	case dash == 1:
		c.runRequest.Name = c.Arg(0)
	}
	c.Command, c.Env = c.Args()[dash:], os.Environ()
	for _, v := range c.volumes {
		volume, err := parseVolume(v)
		if err != nil {
			return false, err
		}
		c.Volumes = append(c.Volumes, volume)
	}
	if c.Store = c.flags.root; c.Store == "" {
		if c.Store, err = defaultRoot(); err != nil {
			return false, err
		}
	}
	c.Dir, _ = os.Getwd()
	return false, c.openStore()
}

// openStore makes the directory of the store and finds out where it really is.
func (c *runCommand) openStore() (err error) {
	if c.Store, err = filepath.Abs(c.Store); err == nil {
		err = os.MkdirAll(c.Store, 0700)
	}
	if err == nil {
		c.Store, err = filepath.EvalSymlinks(c.Store)
	}
	return err
}

// run has the command run, in a container of the store if that is what is meant.
func (c *runCommand) run() (code int, err error) {
	held, err := c.container()
	if err != nil {
		return 0, err
	}
	if held == nil {
		return c.launch(sandbox.Identity{Ranges: true})
	}
	defer func() { err = errors.Join(err, held.release(c.Remove)) }()
	// What has several owners could not be removed by the other commands.
	return c.launch(sandbox.Identity{}, held.lock)
}

func (c *runCommand) launch(id sandbox.Identity, files ...*os.File) (int, error) {
	if c.Lower == "" {
		c.Lower = "/"
	}
	var err error
	if c.Lower, err = filepath.Abs(c.Lower); err != nil {
		return 0, err
	}
	name := c.runRequest.Name
	if c.Source != nil {
		name = "" // the container has the changes
	}
	var lock *os.File
	if c.RunDir, lock, err = makeRunDir(c.Store, name); err != nil {
		return 0, errs.New(errs.Of(err), "run: %w", err)
	}
	defer lock.Close()
	data, err := json.Marshal(c.runRequest)
	if err != nil {
		return 0, err
	}
	code, err := sandbox.Launch(runHolder, data, id, append(files, lock)...)
	if err != nil {
		_ = os.Remove(c.RunDir) // which is empty if nobody has begun to use it
		err = errs.New(errs.Of(err), "run: %w", err)
	}
	return code, err
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
	spec := sandbox.Spec{Keep: req.Store, Root: src.point, Volumes: req.Volumes, Command: req.Command, Env: req.Env, Dir: "/"}
	if req.Source == nil {
		if inside := within(req.Store, req.Lower); inside != "" {
			spec.Hide = []string{inside} // the upper must not be seen in what is below it
		}
		if req.Lower == "/" {
			spec.Dir = req.Dir
		}
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
