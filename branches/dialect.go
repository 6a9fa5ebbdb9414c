package branches

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// chooseFormat settles what is written in the upper: what it is written in
// already, else what was asked for, else what the file system takes. The
// choice is recorded in the upper, so that two never mix by accident.
func chooseFormat(upper *Branch, w *Work, cfg Config) (whiteout.Format, error) {
	recorded, has, err := writtenIn(upper)
	if err != nil {
		return recorded, errs.New(errs.Corrupt, "upper %s: %w", upper.Path, err)
	}
	f := whiteout.Format{NS: chooseNamespace(w, cfg)}
	if has && recorded.NS == whiteout.Trusted && f.NS == whiteout.User {
		if cfg.UserXattr && !sys.InUserNamespace() {
			return f, errs.New(errs.Corrupt, "upper %s is written in dialect %q: mount it without userxattr, or `layerfs convert --to %s --namespace user`", upper.Path, recorded, recorded.Dialect)
		}
		// Without privileges the trusted. records of this upper cannot be read.
		return f, errs.New(errs.Corrupt, "upper %s is written in dialect %q, which this user cannot read: mount it as root", upper.Path, recorded)
	}
	switch {
	case cfg.Dialect == "" || cfg.Dialect == "auto":
		if has {
			return recorded, nil
		}
		f.Dialect = autoDialect(w, cfg)
	default:
		if f.Dialect, err = whiteout.ParseDialect(cfg.Dialect); err != nil {
			return f, errs.New(errs.Usage, "whiteout=%s: %w", cfg.Dialect, err)
		}
		if has && recorded.Dialect != f.Dialect {
			return f, errs.New(errs.Corrupt, "upper %s is written in dialect %q: mount it with whiteout=%s, or convert it", upper.Path, recorded, recorded.Dialect)
		}
		if has {
			return recorded, nil
		}
		if f.Dialect == whiteout.Overlay && !takesDevices(w) {
			return f, errs.New(errs.Unsupported, "the file system of upper %s takes no whiteout devices: use whiteout=aufs", upper.Path)
		}
	}
	if f.Dialect != whiteout.AUFS && !takesXattr(w, string(f.NS)+"overlay.opaque") {
		if cfg.Dialect != "" && cfg.Dialect != "auto" {
			return f, errs.New(errs.Unsupported, "the file system of upper %s takes no %s extended attributes, which whiteout=%s needs: use whiteout=aufs", upper.Path, f.NS, f.Dialect)
		}
		f.Dialect = whiteout.AUFS
	}
	if err := f.Record(upper.Root); err != nil {
		return f, errs.New(errs.Of(err), "upper %s cannot be written: %w", upper.Path, err)
	}
	return f, nil
}

// writtenIn returns the recorded format of upper. That of an upper in which
// kernel overlay has written shows on its root, and is recorded from now on.
func writtenIn(upper *Branch) (f whiteout.Format, has bool, err error) {
	f, has, err = whiteout.Recorded(upper.Root)
	if has || err != nil {
		return f, has, err
	}
	ns, has := whiteout.KernelNamespace(upper.Root)
	if !has {
		return f, false, nil
	}
	f = whiteout.Format{Dialect: whiteout.Overlay, NS: ns}
	return f, true, f.Record(upper.Root)
}

func autoDialect(w *Work, cfg Config) whiteout.Dialect {
	if cfg.AufsStyle || !takesDevices(w) {
		return whiteout.AUFS
	}
	return whiteout.Overlay
}

// chooseNamespace returns trusted. where this process may use it.
func chooseNamespace(w *Work, cfg Config) whiteout.Namespace {
	if cfg.UserXattr || sys.InUserNamespace() || !takesXattr(w, "trusted.overlay.opaque") {
		return whiteout.User
	}
	return whiteout.Trusted
}

// takesXattr tries to set attr on a directory of the work directory.
func takesXattr(w *Work, attr string) bool {
	if sys.SetXattr(w.Tmp, "", attr, []byte("n"), 0) != nil {
		return false
	}
	return sys.RemoveXattr(w.Tmp, "", attr) == nil
}

// takesDevices tries a whiteout device: made, looked back at, left behind by
// a rename, removed. virtiofs and NFS servers refuse it in various ways.
func takesDevices(w *Work) bool {
	a, b := w.Name(), w.Name()
	defer w.Discard(a)
	defer w.Discard(b)
	if sys.Mknod(w.Tmp, a, unix.S_IFCHR, 0) != nil {
		return false
	}
	st, err := sys.StatAt(w.Tmp, a, 0)
	if err != nil || !st.IsWhiteout() || sys.Unlink(w.Tmp, a) != nil {
		return false
	}
	if sys.Mknod(w.Tmp, a, unix.S_IFREG|0600, 0) != nil {
		return false
	}
	if sys.Rename(w.Tmp, a, w.Tmp, b, sys.RenameWhiteout) != nil {
		return false
	}
	st, err = sys.StatAt(w.Tmp, a, 0)
	return err == nil && st.IsWhiteout()
}
