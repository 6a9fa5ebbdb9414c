package whiteout

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
)

// Name returns the name under which a whiteout of name lies in this format.
func (f Format) Name(name string) string {
	if f.Dialect == AUFS {
		return Prefix + name
	}
	return name
}

// InPlace reports whether a whiteout occupies the very name that it hides,
// so that it must replace the entry rather than lie beside it.
func (f Format) InPlace() bool { return f.Dialect != AUFS }

// Make makes a whiteout object called name in dirfd, exactly there: the
// caller chooses the place (Name) and moves it if need be.
func (f Format) Make(dirfd int, name string) error {
	switch f.Dialect {
	case Overlay:
		return sys.Mknod(dirfd, name, unix.S_IFCHR, 0)
	case AUFS:
		return sys.Mknod(dirfd, name, unix.S_IFREG|0444, 0)
	}
	if err := sys.Mknod(dirfd, name, unix.S_IFREG|0600, 0); err != nil {
		return err
	}
	return sys.SetXattr(dirfd, name, string(f.NS)+"overlay.whiteout", nil, 0)
}

// PrepareDir readies the directory name in dirfd for whiteouts of this
// format inside; only the xattr dialect needs a mark.
func (f Format) PrepareDir(dirfd int, name string) error {
	if f.Dialect != Xattr {
		return nil
	}
	attr := string(f.NS) + "overlay.opaque"
	if v, err := sys.GetXattr(dirfd, name, attr); err == nil && len(v) > 0 {
		return nil // "x" already; an opaque directory never receives a whiteout
	}
	return sys.SetXattr(dirfd, name, attr, []byte("x"), 0)
}

// SetOpaque marks the directory name in dirfd opaque.
func (f Format) SetOpaque(dirfd int, name string) error {
	if f.Dialect == AUFS {
		return f.putOpaqueFile(dirfd, name, "")
	}
	return sys.SetXattr(dirfd, name, string(f.NS)+"overlay.opaque", []byte("y"), 0)
}

// SetRedirect records that the lower content of the directory name in dirfd
// is at path, absolute from the root of the branches below.
func (f Format) SetRedirect(dirfd int, name, path string) error {
	if f.Dialect == AUFS {
		return f.putOpaqueFile(dirfd, name, path)
	}
	return sys.SetXattr(dirfd, name, string(f.NS)+"overlay.redirect", []byte(path), 0)
}

// putOpaqueFile writes .wh..wh..opq by way of a temporary name, so that a
// crash leaves no half-written redirect. The directory keeps its times: what it
// shows does not change.
func (f Format) putOpaqueFile(dirfd int, name, content string) error {
	fd, err := sys.OpenDir(dirfd, name)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return sys.KeepTimes(fd, func() error { return writeOpaqueFile(fd, content) })
}

func writeOpaqueFile(fd int, content string) error {
	tmp := OpaqueFile + ".tmp"
	_ = sys.Unlink(fd, tmp)
	out, err := sys.OpenIn(fd, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0444)
	if err != nil {
		return err
	}
	err = sys.PWriteAll(out, []byte(content), 0)
	sys.Close(out)
	if err == nil {
		err = sys.Rename(fd, tmp, fd, OpaqueFile, 0)
	}
	if err != nil {
		_ = sys.Unlink(fd, tmp)
	}
	return err
}

// Recorded returns the format that the upper at root says it is written in;
// ok is false when it says nothing.
func Recorded(root int) (f Format, ok bool, err error) {
	for _, attr := range []string{string(Trusted) + records.FormatAttr, string(User) + records.FormatAttr, records.TrustedHint} {
		if v, err := sys.GetXattr(root, "", attr); err == nil {
			f, err = ParseFormat(string(v))
			return f, err == nil, err
		}
	}
	fd, err := sys.OpenIn(root, FormatFile, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return Format{}, false, nil
	}
	defer sys.Close(fd)
	var buf [64]byte
	n, err := sys.PRead(fd, buf[:], 0)
	if err == unix.EISDIR { // StubDir
		return Format{}, false, nil
	}
	if err != nil {
		return Format{}, false, err
	}
	f, err = ParseFormat(string(buf[:n]))
	return f, err == nil, err
}

// KernelNamespace returns where kernel overlay has kept its records in the upper
// at root, which layerfs has not recorded; ok is false when that does not show.
func KernelNamespace(root int) (ns Namespace, ok bool) {
	attrs, err := sys.ListXattr(root, "")
	if err != nil {
		return "", false
	}
	for _, a := range attrs {
		for _, ns := range []Namespace{Trusted, User} {
			// What ovl_init_uuid_xattr, ovl_verify_set_fh and ovl_set_impure leave on a root.
			for _, mark := range []string{"uuid", "origin", "impure"} {
				if a == string(ns)+"overlay."+mark {
					return ns, true
				}
			}
		}
	}
	return "", false
}

// Record notes f in the upper at root.
func (f Format) Record(root int) error {
	if sys.SetXattr(root, "", string(f.NS)+records.FormatAttr, []byte(f.String()), 0) == nil {
		return f.hint(root)
	}
	fd, err := sys.OpenIn(root, FormatFile, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0444)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return sys.PWriteAll(fd, []byte(f.String()), 0)
}

// hint leaves a copy of a record in trusted. for those who cannot see it. A
// file system without user. attributes has none.
func (f Format) hint(root int) error {
	if f.NS != Trusted {
		return nil
	}
	err := sys.SetXattr(root, "", records.TrustedHint, []byte(f.String()), 0)
	if err == unix.EOPNOTSUPP || err == unix.EPERM {
		return nil
	}
	return err
}
