package main

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/fs"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/fusedev"
)

// forever is how long the kernel may cache what nobody else changes. It is
// as good as no limit and far from overflowing a time.Duration.
const forever = 10 * 365 * 24 * time.Hour

// settings is what the options of a mount amount to.
type settings struct {
	strict bool // `layerfs mount`: mistakes are errors

	lower       []string
	upper, work string
	br          []branches.Spec
	whiteout    string
	userXattr   bool
	policy      branches.Policy
	showMarks   bool
	volatile    bool

	fs     fs.Options // Log and Pools are set when the mount is made
	copyUp string     // copyup=; "" is full
	pool   string     // the shared pool, "" for private ones
	// settleAt is when stubs become plain files: "" for when that is asked for.
	settleAt string

	fsName, subtype string
	flags, cleared  uintptr // MS_* set and cleared by words
	allowOther      bool
	extra           []string // more mount data

	timeout *time.Duration
	udba    string

	backend  string   // auto, fuse or overlay
	only     []string // options given that kernel overlay does not have
	index    bool     // for kernel overlay; the FUSE union keeps hard links in any case
	metacopy bool     // for kernel overlay alone
	redirect bool     // redirect_dir=on was given
}

func newSettings(strict bool) *settings {
	return &settings{
		strict:   strict,
		whiteout: "auto",
		backend:  "auto",
		fsName:   "layerfs",
		subtype:  "layerfs",
		fs:       fs.Options{RedirectDir: true, Threshold: fs.DefaultThreshold},
	}
}

// check finds what is missing or contradictory.
func (s *settings) check() error {
	switch {
	case len(s.br) > 0 && (len(s.lower) > 0 || s.upper != "" || s.work != ""):
		return errs.New(errs.Usage, "br= and lowerdir=, upperdir= or workdir= cannot be used together")
	case len(s.br) == 0 && len(s.lower) == 0:
		return errs.New(errs.Usage, "no lowerdir= (or br=) given")
	case len(s.br) > 0 && s.fs.Passthrough:
		return errs.New(errs.Usage, "passthrough and br= cannot be used together: branches that can be changed need to know what is open")
	case s.upper != "" && s.work == "":
		return errs.New(errs.Usage, "upperdir= needs workdir=, a directory on the same file system")
	case s.showMarks && s.flags&unix.MS_RDONLY == 0:
		return errs.New(errs.Usage, "shwh needs ro: visible whiteouts cannot be changed")
	}
	return nil
}

// stack says what branches.Open is to open; mountpoint is absolute.
func (s *settings) stack(mountpoint string) branches.Config {
	cfg := branches.Config{
		Branches:   s.br,
		Mountpoint: mountpoint,
		Dialect:    s.whiteout,
		AufsStyle:  len(s.br) > 0,
		UserXattr:  s.userXattr,
		ReadOnly:   s.flags&unix.MS_RDONLY != 0,
		Volatile:   s.strict && s.volatile,
		Policy:     s.policy,
		ShowMarks:  s.showMarks,
	}
	if cfg.AufsStyle {
		return cfg
	}
	if s.upper != "" {
		cfg.Branches = append(cfg.Branches, branches.Spec{Path: s.upper, Mode: branches.RW})
		cfg.WorkDir = s.work
	}
	for _, dir := range s.lower {
		cfg.Branches = append(cfg.Branches, branches.Spec{Path: dir, Mode: branches.RO})
	}
	return cfg
}

// fileSystem says how the file system is to behave.
func (s *settings) fileSystem() fs.Options {
	o := s.fs
	o.CopyUp = s.copyUpMode()
	switch {
	case s.timeout != nil:
		o.Timeout = *s.timeout
	case s.udba == "reval":
		o.Timeout = fs.Revalidate
	default:
		o.Timeout = forever
	}
	if s.volatile {
		o.Sync = fs.SyncVolatile
	}
	o.Outside = s.udba == "reval" || s.udba == "notify"
	o.Watch = s.udba == "notify"
	o.ShowMarks = s.showMarks
	o.ReadOnly = s.flags&unix.MS_RDONLY != 0
	o.NoAtime = s.flags&unix.MS_NOATIME != 0
	o.StrictAtime = s.flags&unix.MS_STRICTATIME != 0
	// Branches that come and go have to know what is open in them, and nothing
	// is kept between the opens of files that others may change.
	o.Opens = len(s.br) > 0 || o.Outside || o.Timeout == 0 || o.StrictAtime || o.Passthrough
	return o
}

// mount says how the mount is to look. Root's mounts are for everybody and
// may hold devices and setuid programs, as a container's root has to.
func (s *settings) mount(mountpoint string, maxRead int) fusedev.MountConfig {
	root := os.Geteuid() == 0
	flags := s.flags
	if len(s.br) == 0 && s.upper == "" {
		flags |= unix.MS_RDONLY // for the kernel to refuse what it need not ask us, as with overlay
	}
	if !root {
		flags |= (unix.MS_NOSUID | unix.MS_NODEV) &^ s.cleared
	}
	return fusedev.MountConfig{
		Mountpoint:         mountpoint,
		FsName:             s.fsName,
		Subtype:            s.subtype,
		Flags:              flags,
		AllowOther:         s.allowOther || root,
		DefaultPermissions: true,
		MaxRead:            maxRead,
		Extra:              s.extra,
	}
}

// absolute resolves a mountpoint before the working directory changes.
// Symbolic links are resolved too, as mount(2) does it.
func absolute(mountpoint string) (string, error) {
	path, err := filepath.Abs(mountpoint)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		// A dead mount cannot be looked at but can be named.
		return path, nil
	}
	return real, nil
}
