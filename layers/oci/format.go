package oci

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// chooseFormat settles in which dialect whiteouts are written into the branch
// at root: in which it is written already, else as asked for, else as its file
// system takes them. stage is a directory in the branch to try things in.
func chooseFormat(root, stage int, dialect string) (whiteout.Format, error) {
	recorded, has, err := whiteout.Recorded(root)
	if err != nil {
		return recorded, errs.New(errs.Corrupt, "%w", err)
	}
	f := whiteout.Format{NS: whiteout.User}
	if takesXattr(stage, whiteout.Trusted) {
		f.NS = whiteout.Trusted
	}
	if has && recorded.NS == whiteout.Trusted && f.NS == whiteout.User {
		return f, errs.New(errs.Corrupt, "it is written in dialect %q, which this user cannot read: apply as root", recorded)
	}
	auto := dialect == "" || dialect == "auto"
	if !auto {
		if f.Dialect, err = whiteout.ParseDialect(dialect); err != nil {
			return f, errs.New(errs.Usage, "--whiteout %s: %w", dialect, err)
		}
		if has && recorded.Dialect != f.Dialect {
			return f, errs.New(errs.Corrupt, "it is written in dialect %q: use --whiteout %s, or convert it", recorded, recorded.Dialect)
		}
	}
	if has {
		return recorded, nil
	}
	if auto && !takesDevices(stage) {
		f.Dialect = whiteout.AUFS
	}
	if f.Dialect == whiteout.Overlay && !takesDevices(stage) {
		return f, errs.New(errs.Unsupported, "its file system takes no whiteout devices: use --whiteout aufs")
	}
	if f.Dialect != whiteout.AUFS && !takesXattr(stage, f.NS) {
		if !auto {
			return f, errs.New(errs.Unsupported, "its file system takes no %s extended attributes, which --whiteout %s needs: use --whiteout aufs", f.NS, f.Dialect)
		}
		f.Dialect = whiteout.AUFS
	}
	return f, f.Record(root)
}

func takesXattr(stage int, ns whiteout.Namespace) bool {
	attr := string(ns) + "overlay.opaque"
	return sys.SetXattr(stage, "", attr, []byte("n"), 0) == nil && sys.RemoveXattr(stage, "", attr) == nil
}

// takesDevices tries a whiteout device: made, looked back at, removed.
func takesDevices(stage int) bool {
	const name = "probe"
	if sys.Mknod(stage, name, unix.S_IFCHR, 0) != nil {
		return false
	}
	st, err := sys.StatAt(stage, name, 0)
	return sys.Unlink(stage, name) == nil && err == nil && st.IsWhiteout()
}
