package branches

import (
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/mounts"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// openBranch opens one branch and finds out what is special about it.
func openBranch(index int, spec Spec, cfg Config, table mountTable) (*Branch, error) {
	fd, path, err := openRoot(spec)
	switch {
	case err == unix.ENOENT:
		return nil, errs.New(errs.NotFound, "branch %s does not exist", spec.Path)
	case err == unix.ENOTDIR:
		return nil, errs.New(errs.Usage, "branch %s is not a directory", spec.Path)
	case err != nil:
		return nil, errs.New(errs.Failed, "branch %s cannot be opened: %w", spec.Path, err)
	}
	b := &Branch{Index: index, Path: path, Root: fd}
	b.setMode(spec, cfg)
	st, err := b.RootStat()
	if err != nil {
		sys.Close(fd)
		return nil, errs.New(errs.Failed, "branch %s: %w", spec.Path, err)
	}
	b.Dev = st.Dev
	if b.isKernels() {
		sys.Close(fd)
		return nil, errs.New(errs.Usage, "branch %s is of the kernel's own (procfs or sysfs), which cannot be a branch", spec.Path)
	}
	if _, err := sys.ReadDirUntouched(fd); err != nil {
		sys.Close(fd)
		return nil, errs.New(errs.Failed, "branch %s cannot be read: %w", spec.Path, err)
	}
	if err := b.refuseKernels(); err != nil {
		sys.Close(fd)
		return nil, err
	}
	b.HasMounts = table.below(b.Path)
	if fs, err := sys.Statfs(fd); err == nil {
		b.NoSuid = fs.Flags&unix.ST_NOSUID != 0
	}
	b.detectOverride()
	b.detectStubs()
	return b, nil
}

// openRoot opens the directory of spec and says where it really is.
func openRoot(spec Spec) (fd int, path string, err error) {
	if spec.Fd > 0 {
		if fd, err = sys.Dup(spec.Fd); err != nil {
			return -1, "", err
		}
		path, err = sys.PathOf(fd)
		return fd, path, err
	}
	abs, err := filepath.Abs(spec.Path)
	if err != nil {
		return -1, "", err
	}
	if fd, err = sys.OpenRoot(abs); err != nil {
		return -1, "", err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	return fd, abs, nil
}

// setMode gives b the mode and the attributes of spec.
func (b *Branch) setMode(spec Spec, cfg Config) {
	b.Mode, b.Attr = spec.Mode, parseAttr(spec.Attr)
	if spec.Auto && b.neverChanges() {
		b.Mode = RR
	}
	b.whiteouts = !cfg.AufsStyle || b.Mode == RW || slices.Contains(spec.Attr, "wh")
}

// refuseKernels refuses a branch with what only kernel overlay reads: copies
// without data, and in an upper hard links that its index holds together.
func (b *Branch) refuseKernels() error {
	for _, ns := range []whiteout.Namespace{whiteout.Trusted, whiteout.User} {
		v, _ := sys.GetXattr(b.Root, "", string(ns)+records.KernelAttr)
		for _, f := range strings.Fields(string(v)) {
			if f == "metacopy" || b.Mode == RW {
				return errs.New(errs.Corrupt, "branch %s was written by the kernel's overlay with %s=on, which the FUSE union does not read: mount it with backend=overlay,%s=on", b.Path, f, f)
			}
		}
	}
	return nil
}

// isKernels reports whether what is in b comes and goes by itself: "some are not
// accepted such like sysfs, procfs" (aufs(5), Branch Syntax).
func (b *Branch) isKernels() bool {
	st, err := sys.Statfs(b.Root)
	return err == nil && (st.Type == unix.PROC_SUPER_MAGIC || st.Type == unix.SYSFS_MAGIC)
}

// neverChanges reports whether b is of a type for which rr is "set by default"
// (aufs(5), rr), erofs included.
func (b *Branch) neverChanges() bool {
	st, err := sys.Statfs(b.Root)
	if err != nil {
		return false
	}
	switch st.Type {
	case unix.ISOFS_SUPER_MAGIC, unix.CRAMFS_MAGIC, 0x7275, unix.SQUASHFS_MAGIC, unix.EROFS_SUPER_MAGIC_V1: // romfs has no name there
		return true
	}
	return false
}

// mountTable is what is mounted; nil when that could not be found out.
type mountTable []mounts.Mount

func readMounts() mountTable {
	table, err := mounts.Table()
	if err != nil {
		return nil
	}
	return table
}

// below reports whether anything is mounted below path. In doubt it says yes.
func (t mountTable) below(path string) bool {
	return t == nil || slices.ContainsFunc(t, func(m mounts.Mount) bool { return m.Point != path && within(m.Point, path) })
}

// within reports whether path is dir or lies below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// realDir resolves a directory for comparisons; one that does not exist (yet)
// is compared as it is written.
func realDir(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real
	}
	return abs
}

// checkOverlaps refuses stacks that would feed on themselves. A read-only
// branch may contain the upper, the work directory and the mountpoint.
func (s *Stack) checkOverlaps(cfg Config) error {
	mnt := cfg.Mountpoint
	for _, b := range s.branches {
		if mnt != "" && b.Path != mnt && within(b.Path, mnt) {
			return errs.New(errs.Usage, "branch %s lies inside the mountpoint %s: the mount would cover it", b.Path, mnt)
		}
	}
	for _, b := range s.branches {
		if cfg.ReadOnly || b.Mode != RW {
			continue
		}
		if mnt != "" && mnt != b.Path && within(mnt, b.Path) {
			return errs.New(errs.Usage, "mountpoint %s lies inside the upper %s: mount it somewhere else", mnt, b.Path)
		}
		if err := s.checkInside(b); err != nil {
			return err
		}
		if cfg.WorkDir != "" {
			if err := checkWork(cfg.WorkDir, b.Path, mnt); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkInside refuses branches inside the writable branch up, and up again.
func (s *Stack) checkInside(up *Branch) error {
	for _, b := range s.branches {
		if b.Path == up.Path && b.Index > up.Index {
			return errs.New(errs.Usage, "branch %s is given twice, and is writable", b.Path)
		}
		if b.Path != up.Path && within(b.Path, up.Path) {
			return errs.New(errs.Usage, "branch %s lies inside the writable branch %s", b.Path, up.Path)
		}
	}
	return nil
}

// checkWork refuses a work directory that overlaps with the upper or contains
// the mountpoint.
func checkWork(work, up, mnt string) error {
	if mnt != "" && within(mnt, work) {
		return errs.New(errs.Usage, "mountpoint %s lies inside the work directory %s: mount it somewhere else", mnt, work)
	}
	if within(work, up) || within(up, work) {
		return errs.New(errs.Usage, "work directory %s and upper %s overlap: give them separate directories", work, up)
	}
	return nil
}

// absolute returns cfg with the directories that are not branches as they really
// are. It is done once: a lookup of the mountpoint by a daemon that serves it
// would wait for itself.
func (cfg Config) absolute() Config {
	if cfg.Mountpoint != "" {
		cfg.Mountpoint = realDir(cfg.Mountpoint)
	}
	if cfg.WorkDir != "" {
		cfg.WorkDir = realDir(cfg.WorkDir)
	}
	return cfg
}

// ownDir is a directory that must not be shown in lowers.
type ownDir struct {
	path string
	id   inode
}

// excluded finds the directories of cfg that must not be shown.
func excluded(cfg Config) (own []ownDir) {
	list := cfg.Exclude
	if cfg.WorkDir != "" {
		list = append(list, cfg.WorkDir)
	}
	for _, dir := range list {
		var st unix.Stat_t
		if unix.Stat(dir, &st) == nil {
			own = append(own, ownDir{dir, inode{st.Dev, st.Ino}})
		}
	}
	return own
}

// hideOwn notes, for every lower, which of our own directories lie in it.
func (s *Stack) hideOwn() {
	own, mnt := slices.Clone(s.exclude), s.config.Mountpoint
	for _, b := range s.writable {
		if st, err := b.RootStat(); err == nil {
			own = append(own, ownDir{b.Path, inode{st.Dev, st.Ino}})
		}
	}
	for _, b := range s.branches {
		b.hidden = nil
		if b.Writable() {
			continue
		}
		for _, dir := range own {
			if dir.path != b.Path && within(dir.path, b.Path) {
				b.hidden = append(b.hidden, dir.id)
			}
		}
		if mnt != "" && mnt != b.Path && within(mnt, b.Path) {
			b.mountRel = strings.TrimPrefix(strings.TrimPrefix(mnt, b.Path), "/")
			b.statFlags = sys.DontSync
		}
	}
}
