package kernelbackend

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/mounts"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// lockWait is how long a mount waits for an ending daemon to let go of the
// work directory, as in package branches.
const lockWait = 2 * time.Second

// format is what the kernel writes in the upper.
func (m *mounting) format() whiteout.Format {
	if m.userXattr() {
		return whiteout.Format{Dialect: whiteout.Overlay, NS: whiteout.User}
	}
	return whiteout.Format{Dialect: whiteout.Overlay, NS: whiteout.Trusted}
}

// agrees refuses a branch that the kernel would show otherwise than whoever
// wrote it, as far as its records tell.
func (m *mounting) agrees(b *directory) error {
	f, known, err := whiteout.Recorded(b.fd)
	if err != nil {
		return errs.New(errs.Corrupt, "branch %s: %w", b.path, err)
	}
	if known && f.Dialect != whiteout.Overlay {
		return errs.New(errs.Corrupt, "branch %s is written in dialect %q, which the kernel's overlay does not read: mount it with backend=fuse, or `layerfs convert --to overlay %s`", b.path, f, b.path)
	}
	if !known {
		f.NS, known = whiteout.KernelNamespace(b.fd)
	}
	switch want := m.format().NS; {
	case !known || f.NS == want:
	case f.NS == whiteout.User:
		return errs.New(errs.Corrupt, "branch %s is written with user. attributes, which the kernel's overlay reads only with the option userxattr", b.path)
	case sys.InUserNamespace():
		return errs.New(errs.Corrupt, "branch %s is written with trusted. attributes, which cannot be read in a user namespace: mount it as root", b.path)
	default:
		return errs.New(errs.Corrupt, "branch %s is written with trusted. attributes: mount it without the option userxattr", b.path)
	}
	if has(b, records.LinksAttr) {
		return errs.New(errs.Corrupt, "branch %s has hard links across branches that only the FUSE union knows: mount it with backend=fuse", b.path)
	}
	if st, err := sys.StatAt(b.fd, whiteout.StubDir, 0); err == nil && st.IsDir() {
		return errs.New(errs.Corrupt, "branch %s has files that were copied up by blocks, which only the FUSE union reads: mount it with backend=fuse, or make them plain with `layerfs settle`", b.path)
	}
	return m.hasFeatures(b)
}

// has reports whether the root of b carries an attribute in any namespace.
func has(b *directory, attr string) bool {
	_, ok := value(b, attr)
	return ok
}

func value(b *directory, attr string) (string, bool) {
	for _, ns := range []whiteout.Namespace{whiteout.Trusted, whiteout.User} {
		if v, err := sys.GetXattr(b.fd, "", string(ns)+attr); err == nil {
			return string(v), true
		}
	}
	return "", false
}

// hasFeatures refuses a branch written with a feature of the kernel's overlay
// that this mount does not have. The index belongs to an upper only.
func (m *mounting) hasFeatures(b *directory) error {
	text, _ := value(b, records.KernelAttr)
	for _, f := range strings.Fields(text) {
		if f == "metacopy" && !m.Metacopy || f == "index" && b == m.upper && !m.Index {
			return errs.New(errs.Corrupt, "branch %s was written by the kernel's overlay with %s=on, and needs that option again", b.path, f)
		}
	}
	return nil
}

// recordFeatures notes what of the upper only the kernel's overlay will read.
func (m *mounting) recordFeatures() error {
	var list []string
	if m.Metacopy {
		list = append(list, "metacopy")
	}
	if m.Index {
		list = append(list, "index")
	}
	if list == nil {
		return nil
	}
	err := sys.SetXattr(m.upper.fd, "", string(m.format().NS)+records.KernelAttr, []byte(strings.Join(list, " ")), 0)
	if err != nil {
		return errs.New(errs.Of(err), "upper %s takes no record of %s: %w", m.upper.path, strings.Join(list, " and "), err)
	}
	return nil
}

// claim makes sure that nobody else uses the upper, that nothing of its last
// mount is left to be done, and records what it is written in from now on.
func (m *mounting) claim() error {
	if err := m.alone(); err != nil {
		return err
	}
	if err := m.settled(); err != nil {
		return err
	}
	return sys.KeepTimes(m.upper.fd, m.record)
}

// record notes in the upper what it is written in. Where there are no
// attributes for that there would be none for the overlay either.
func (m *mounting) record() error {
	attr := string(m.format().NS) + records.FormatAttr
	_, err := sys.GetXattrInto(m.upper.fd, "", attr, nil)
	m.fresh = err == unix.ENODATA
	err = sys.SetXattr(m.upper.fd, "", attr, []byte(m.format().String()), 0)
	switch err {
	case nil:
	case unix.EPERM, unix.EACCES, unix.EOPNOTSUPP:
		class, why := m.why(unix.EPERM)
		if err == unix.EOPNOTSUPP {
			why = "that file system takes none"
		}
		return errs.New(class, "upper %s takes no %s attributes: %w: %s", m.upper.path, m.format().NS, err, why)
	default:
		return errs.New(errs.Of(err), "upper %s cannot be written: %w", m.upper.path, err)
	}
	if err := m.format().Record(m.upper.fd); err != nil { // with the hint
		return errs.New(errs.Of(err), "upper %s cannot be written: %w", m.upper.path, err)
	}
	return m.recordFeatures()
}

// unrecord undoes the record in an upper that had none.
func (m *mounting) unrecord() {
	if !m.fresh {
		return
	}
	_ = sys.KeepTimes(m.upper.fd, func() error {
		for _, attr := range []string{records.FormatAttr, records.KernelAttr} {
			_ = sys.RemoveXattr(m.upper.fd, "", string(m.format().NS)+attr)
		}
		_ = sys.RemoveXattr(m.upper.fd, "", records.TrustedHint)
		return nil
	})
}

// alone fails with errs.Busy when a FUSE daemon has locked the work directory,
// or an overlay of this mount namespace uses it or the upper: the kernel itself
// would only log that.
func (m *mounting) alone() error {
	for deadline := time.Now().Add(lockWait); ; time.Sleep(20 * time.Millisecond) {
		err := sys.Flock(m.work.fd)
		if err == nil {
			break
		}
		if err != unix.EWOULDBLOCK {
			return errs.New(errs.Failed, "work directory %s cannot be locked: %w", m.work.path, err)
		}
		if time.Now().After(deadline) {
			return errs.New(errs.Busy, "work directory %s is in use by another writable mount: unmount that one, or mount with ro", m.work.path)
		}
	}
	if point := mounts.OverlayWriting(m.upper.path, m.work.path); point != "" {
		return errs.New(errs.Busy, "upper %s or work directory %s is in use by the overlay on %s: unmount that one, or mount with ro", m.upper.path, m.work.path, point)
	}
	return nil
}

// settled fails when the last mount of the upper has left what only the FUSE
// union can complete, or was volatile and may have lost something.
func (m *mounting) settled() error {
	keep, err := sys.OpenDir(m.work.fd, records.KeepDir)
	switch {
	case err == unix.ENOENT:
		return m.notVolatile(-1)
	case err != nil:
		return errs.New(errs.Failed, "work directory %s: %w", m.work.path, err)
	}
	defer sys.Close(keep)
	if err := m.noRenames(keep); err != nil {
		return err
	}
	if err := m.noRedirects(); err != nil {
		return err
	}
	return m.notVolatile(keep)
}

func (m *mounting) noRenames(keep int) error {
	entries, err := sys.ReadDirAt(keep)
	if err != nil {
		return errs.New(errs.Failed, "work directory %s: %w", m.work.path, err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name, records.RenamePrefix) {
			return errs.New(errs.Corrupt, "upper %s: a rename was interrupted, which the FUSE union completes: mount it once with backend=fuse", m.upper.path)
		}
	}
	return nil
}
