package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/mounts"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/kernelbackend"
)

// rootSource is what a root directory is made of. It belongs to this process
// until close.
type rootSource struct {
	lowers             []string // top first
	upper, work, point string
	whole              string // a directory that is all of it, instead of branches
	// mapped: everything belongs to ids that this user namespace has, so that
	// kernel overlay can change it.
	mapped  bool
	dir     string // has upper, work and point
	discard bool   // dir is removed at the end
	sync    bool   // the changes are kept
}

// openSource makes the directories for a run in the directory that the caller
// has made and locked.
func openSource(req *runRequest) (*rootSource, error) {
	sweep(filepath.Dir(req.RunDir))
	src := &rootSource{dir: req.RunDir, point: filepath.Join(req.RunDir, "root"), discard: req.Name == "" || req.Remove || req.Source != nil}
	open := src.openDirectory
	if req.Source != nil {
		open = src.openContainer
	}
	err := makeDirs(src.point)
	if err == nil {
		err = open(req)
	}
	if err != nil {
		return nil, errors.Join(err, src.close())
	}
	return src, nil
}

// makeDirs makes directories that are not there.
func makeDirs(dirs ...string) error {
	for _, d := range dirs {
		if err := os.Mkdir(d, 0755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// openContainer takes the branches of a container; only the mountpoint is ours.
func (src *rootSource) openContainer(req *runRequest) error {
	s := req.Source
	src.lowers, src.upper, src.work, src.whole = s.Lowers, s.Upper, s.Work, s.Dir
	src.mapped, src.sync = true, !req.Remove
	return nil
}

// openDirectory makes a directory the only lower.
func (src *rootSource) openDirectory(req *runRequest) error {
	if st, err := os.Stat(req.Lower); err != nil {
		return errs.New(errs.Of(err), "lower directory %s: %w", req.Lower, errors.Unwrap(err))
	} else if !st.IsDir() {
		return errs.New(errs.Usage, "lower directory %s is not a directory", req.Lower)
	}
	src.sync = !src.discard
	src.lowers = []string{req.Lower}
	src.upper, src.work = filepath.Join(src.dir, "upper"), filepath.Join(src.dir, "work")
	if err := makeDirs(src.upper, src.work); err != nil {
		return err
	}
	src.mapped = !sys.InUserNamespace() || allMapped(req.Lower)
	return likeLower(src.upper, req.Lower)
}

// likeLower gives the root of an upper the mode that the root of the tree has.
func likeLower(upper, lower string) error {
	st, err := os.Stat(lower)
	if err != nil {
		return err
	}
	return os.Chmod(upper, st.Mode().Perm())
}

func (src *rootSource) close() error {
	if !src.discard {
		return nil
	}
	return os.RemoveAll(src.dir)
}

// maxOwners is how many files allMapped looks at.
const maxOwners = 20000

// overflowID is whom files seem to belong to whose owner has no id here.
const overflowID = 65534

// allMapped reports whether every file in dir belongs to an id of this user
// namespace. In doubt, as in a large tree, it says no.
func allMapped(dir string) bool {
	seen, all := 0, true
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if seen++; seen > maxOwners || st.Uid == overflowID || st.Gid == overflowID {
			all = false
			return fs.SkipAll
		}
		return nil
	})
	return err == nil && all
}

// mountedRoot is a root directory that is mounted.
type mountedRoot struct {
	point string
	ended chan error // the end of the FUSE union's process; nil without one
	plain bool       // no union at all
}

// mount mounts the tree: kernel overlay where it shows the same as the FUSE union.
func (src *rootSource) mount(verbose bool) (*mountedRoot, error) {
	if src.whole != "" {
		say(verbose, "the root directory is "+src.whole)
		return &mountedRoot{point: src.point, plain: true}, unix.Mount(src.whole, src.point, "", unix.MS_BIND, "")
	}
	o := kernelbackend.Overlay{
		Lowers: src.lowers, Upper: src.upper, Work: src.work, Mountpoint: src.point,
		RedirectDir: !sys.InUserNamespace(), Volatile: !src.sync,
	}
	why := src.whyFUSE(&o)
	if why == "" {
		err := kernelbackend.MountOverlay(o)
		switch {
		case err == nil:
			say(verbose, "the root directory is an overlay of the kernel")
			return &mountedRoot{point: src.point}, nil
		case errs.Of(err) == errs.Busy, errors.Is(err, kernelbackend.ErrVolatile):
			return nil, err
		}
		why = err.Error()
	}
	say(verbose, "the root directory is a FUSE union: "+why)
	return src.mountFUSE()
}

func say(verbose bool, text string) {
	if verbose {
		warn("%s", text)
	}
}

func (src *rootSource) whyFUSE(o *kernelbackend.Overlay) string {
	if !src.mapped {
		return "files that belong to ids which this user namespace does not have are to be changed"
	}
	mark, err := o.ForeignMarks()
	switch {
	case err != nil:
		return err.Error()
	case mark != "":
		return "the kernel's overlay does not read whiteouts such as " + mark
	}
	return ""
}

// liveTime is how long a mount may take.
const liveTime = 10 * time.Second

// mountFUSE has a process of its own serve the FUSE union; it ends with this one.
func (src *rootSource) mountFUSE() (*mountedRoot, error) {
	options := []string{"backend=fuse", "lowerdir=" + escapePaths(src.lowers), "upperdir=" + escapePaths([]string{src.upper}), "workdir=" + escapePaths([]string{src.work})}
	if !src.sync {
		options = append(options, "volatile")
	}
	options = append(options, idOptions()...)
	var said strings.Builder
	daemon := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{os.Args[0], "mount", "-f", "-o", strings.Join(options, ","), src.point},
		Env: os.Environ(), Stderr: &said,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM},
	}
	if err := daemon.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	for deadline := time.Now().Add(liveTime); ; time.Sleep(2 * time.Millisecond) {
		select {
		case err := <-ended:
			return nil, fmt.Errorf("the FUSE union: %w: %s", err, oneLine(strings.TrimSpace(said.String())))
		default:
		}
		if _, ok, err := mounts.On(src.point); ok || err != nil {
			return &mountedRoot{point: src.point, ended: ended}, err
		}
		if time.Now().After(deadline) {
			_ = daemon.Process.Kill()
			return nil, errors.New("the FUSE union does not come up")
		}
	}
}

// idOptions has the FUSE union show what belongs to no id of this user
// namespace as root's, so that it can be changed. Where root is the only
// id everything is his.
func idOptions() []string {
	switch ids := idsHere(); {
	case !sys.InUserNamespace():
		return nil
	case ids <= 1:
		return []string{"squash_to_root"}
	default:
		m := fmt.Sprintf("0:0:%d:%d:0:1", overflowID, overflowID)
		if rest := ids - overflowID - 1; rest > 0 {
			m += fmt.Sprintf(":%d:%d:%d", overflowID+1, overflowID+1, rest)
		}
		return []string{"uidmapping=" + m, "gidmapping=" + m}
	}
}

// idsHere is how many user ids this namespace has.
func idsHere() (n int) {
	data, _ := os.ReadFile("/proc/self/uid_map")
	for _, line := range strings.Split(string(data), "\n") {
		var inside, outside, count int
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err == nil {
			n += count
		}
	}
	return n
}

func escapePaths(paths []string) string {
	var out []string
	for _, p := range paths {
		out = append(out, strings.NewReplacer(`\`, `\\`, ",", `\,`, ":", `\:`).Replace(p))
	}
	return strings.Join(out, ":")
}

// unmount unmounts and waits for what has been written to arrive.
func (r *mountedRoot) unmount() error {
	if r.ended == nil && !r.plain {
		return kernelbackend.UnmountOverlay(r.point, false)
	}
	if err := sys.Unmount(r.point, 0); err != nil {
		return fmt.Errorf("unmounting %s: %w", r.point, err)
	}
	if r.plain {
		return nil
	}
	// The command's mount namespace, of which the kernel may take a moment to
	// dispose, has had the mount too.
	select {
	case err := <-r.ended:
		return err
	case <-time.After(liveTime):
		return errors.New("the process of the FUSE union does not end")
	}
}
