package main

import (
	"errors"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/fs"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/kernelbackend"
	"github.com/layerfs/layerfs/whiteout"
)

// whyMark, in the environment, tells the daemon why it is one.
const whyMark = "_LAYERFS_WHY"

// kernelToo are the options that kernel overlay has too, or does not need.
var kernelToo = []string{
	"lowerdir", "upperdir", "workdir", "backend", "userxattr", "index", "metacopy", "volatile", "plink", "dirperm1",
	"allow_other", "fsname", "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "atime",
	"nodiratime", "diratime", "relatime", "norelatime", "strictatime", "nostrictatime", "async",
	"noshwh", "nosum",
}

// kernelValues are values of options, of which other values are the FUSE union's.
var kernelValues = map[string][]string{
	"whiteout": {"auto", "overlay"}, "copyup": {"auto", "full"}, "fsync": {"auto", "1", "volatile", "0"},
	"redirect_dir": {"on", "off", "follow", "nofollow"}, "udba": {"none"}, "diropq": {"whiteouted", "w"},
	"create": {"tdp", "top-down-parent"}, "cpup": {"tdp", "top-down-parent"},
}

// noteOnly notes an option that was given and that kernel overlay lacks.
func (s *settings) noteOnly(name, token string) {
	_, value, _ := strings.Cut(token, "=")
	if contains(kernelToo, name) || contains(kernelValues[name], value) || contains(ignoredOptions, name) {
		return
	}
	s.only = append(s.only, token)
}

// whyFUSE is why what was asked for is the FUSE union, "" when it need not be.
func (inv *invocation) whyFUSE() string {
	switch {
	case inv.backend == "fuse":
		return "asked for (backend=fuse)"
	case len(inv.br) > 0:
		return "br= is the FUSE union's"
	case len(inv.only) > 0:
		return "the kernel's overlay has no option " + inv.only[0]
	case inv.debug:
		return "-d prints the requests of FUSE"
	}
	return ""
}

// overlay is what the kernel is asked to mount.
func (inv *invocation) overlay() kernelbackend.Overlay {
	user := inv.userXattr || sys.InUserNamespace()
	return kernelbackend.Overlay{
		Lowers: inv.lower, Upper: inv.upper, Work: inv.work, Mountpoint: inv.mountpoint,
		ReadOnly: inv.flags&unix.MS_RDONLY != 0, UserXattr: inv.userXattr,
		// With user. attributes the kernel redirects nothing: whoever insists has the FUSE union.
		RedirectDir: inv.fs.RedirectDir && (!user || inv.redirect), Metacopy: inv.metacopy, Index: inv.index, Volatile: inv.volatile,
		Source: inv.fsName, Flags: inv.flags,
	}
}

// mountKernels mounts kernel overlay if that was asked for, or if nothing that
// was asked for is in the way and the kernel takes the stack; done is false
// when it is the FUSE union's turn.
func (inv *invocation) mountKernels() (done bool, err error) {
	if os.Getenv(daemonMark) != "" { // the other half has decided
		inv.why = os.Getenv(whyMark)
		return false, nil
	}
	inv.why = inv.whyFUSE()
	if inv.backend == "overlay" && inv.why != "" {
		return false, errs.New(errs.Usage, "backend=overlay is not possible: %s", inv.why)
	}
	if inv.why != "" {
		return false, nil
	}
	if inv.mountpoint, err = absolute(inv.mountpoint); err != nil {
		return false, err
	}
	o := inv.overlay()
	if inv.backend == "auto" {
		if inv.why = unfit(&o); inv.why != "" {
			return false, nil
		}
	}
	switch err := kernelbackend.MountOverlay(o); {
	case err == nil:
		return true, inv.stay()
	case inv.backend == "overlay", errs.Of(err) == errs.Busy, errors.Is(err, kernelbackend.ErrVolatile):
		return false, err
	default:
		inv.why = "auto: " + oneLine(err.Error())
		return false, nil
	}
}

// unfit is why the kernel cannot mount the stack, or would not show it as the
// FUSE union does; "" when nothing speaks against it so far.
func unfit(o *kernelbackend.Overlay) string {
	if err := kernelbackend.Ready(); err != nil {
		return "auto: " + err.Error()
	}
	mark, err := o.ForeignMarks()
	inside := o.Inside()
	switch {
	case inside != "" && !o.ReadOnly:
		return "auto: the kernel's overlay does not hide the upper, which lies inside " + inside
	case err != nil:
		return "auto: " + err.Error()
	case mark != "":
		return "auto: the kernel's overlay does not read whiteouts such as " + mark
	}
	return ""
}

// passWhy tells the daemon that is to be.
func (inv *invocation) passWhy() {
	if os.Getenv(daemonMark) == "" {
		os.Setenv(whyMark, inv.why)
	}
}

// stay is -f for a mount that needs no process: it waits for the unmount, or
// unmounts at a signal.
func (inv *invocation) stay() error {
	if !inv.foreground {
		return nil
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	select {
	case <-signals:
		return kernelbackend.UnmountOverlay(inv.mountpoint, true)
	case <-unmounted(inv.mountpoint):
		return nil
	}
}

// unmounted is closed when no overlay is on mountpoint any more.
func unmounted(mountpoint string) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		table, err := os.Open("/proc/self/mountinfo")
		if err != nil {
			return
		}
		defer table.Close()
		for {
			if _, ok, err := kernelbackend.OverlayAt(mountpoint); err != nil || !ok {
				return
			}
			fds := []unix.PollFd{{Fd: int32(table.Fd()), Events: unix.POLLPRI}} // the table has changed
			if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
				return
			}
		}
	}()
	return gone
}

// kernelMount returns the kernel's overlay on mountpoint, whoever mounted it.
func kernelMount(mountpoint string) (kernelbackend.Live, bool) {
	live, ok, err := kernelbackend.OverlayAt(mountpoint)
	return live, ok && err == nil
}

// overlayStatus is what `layerfs status` prints of a kernel mount; its fields
// are those of fs.Status as far as the kernel tells.
type overlayStatus struct {
	Backend     string   `json:"backend"`
	Why         string   `json:"why"`
	Dialect     string   `json:"dialect"`
	ReadOnly    bool     `json:"read_only"`
	Upper       string   `json:"upper,omitempty"`
	Branches    int      `json:"branches"`
	Caches      string   `json:"caches"`
	Sync        string   `json:"fsync"`
	RedirectDir bool     `json:"redirect_dir"`
	Options     []string `json:"options"`
}

func kernelStatus(live kernelbackend.Live) overlayStatus {
	f := whiteout.Format{Dialect: whiteout.Overlay, NS: whiteout.Trusted}
	s := overlayStatus{
		Backend: "overlay", Why: "the kernel's overlay takes this stack, and no option needs the FUSE union",
		ReadOnly: live.Upper == "", Upper: live.Upper, Branches: len(live.Lowers),
		Caches: "the kernel's own", Sync: "auto", Options: live.Options,
	}
	if live.Upper != "" {
		s.Branches++
	}
	for _, o := range live.Options {
		switch o {
		case "userxattr":
			f.NS = whiteout.User
		case "redirect_dir=on":
			s.RedirectDir = true
		case "volatile", "fsync=volatile":
			s.Sync = "volatile"
		}
	}
	s.Dialect = f.String()
	return s
}

// kernelStack opens the branches of a kernel mount for reading.
func kernelStack(live kernelbackend.Live) (*branches.Stack, error) {
	cfg := branches.Config{Mountpoint: live.Mountpoint, ReadOnly: true}
	dirs := live.Lowers
	if live.Upper != "" {
		dirs = append([]string{live.Upper}, dirs...)
	}
	for _, d := range dirs {
		cfg.Branches = append(cfg.Branches, branches.Spec{Path: d, Mode: branches.RO})
	}
	return branches.Open(cfg)
}

func kernelBranches(live kernelbackend.Live) ([]fs.BranchInfo, error) {
	stack, err := kernelStack(live)
	if err != nil {
		return nil, err
	}
	defer stack.Close()
	var list []fs.BranchInfo
	for _, b := range stack.Branches() {
		mode := b.Mode
		if b.Index == 0 && live.Upper != "" {
			mode = branches.RW
		}
		list = append(list, fs.BranchInfo{Index: b.Index, Path: b.Path, Mode: mode.String(), Dialect: branches.DialectOf(b)})
	}
	return list, nil
}

func kernelTrace(live kernelbackend.Live, path string) (fs.Trace, error) {
	stack, err := kernelStack(live)
	if err != nil {
		return fs.Trace{}, err
	}
	f, err := fs.New(stack, fs.Options{ReadOnly: true})
	if err != nil {
		stack.Close()
		return fs.Trace{}, err
	}
	defer f.Close()
	return f.Trace(path)
}
