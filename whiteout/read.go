package whiteout

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// Marks are the records that a directory carries about itself.
type Marks struct {
	Opaque         bool   // hides what lower branches have at its place
	XattrWhiteouts bool   // empty files with overlay.whiteout in it are whiteouts
	Redirect       string // "" or the path of its lower content: "/a/b" from the root, "b" beside itself
}

// ReadMarks reads the records of the directory name in dirfd (of dirfd
// itself when name is "."). Those that make no sense, or that this user or
// file system cannot have, count as absent; what could not be found out is an
// error, since a mark that is overlooked shows what was deleted.
func ReadMarks(dirfd int, name string) (Marks, error) {
	var m Marks
	attrs, err := sys.ListXattr(dirfd, name)
	if !absent(err) {
		return m, err
	}
	for _, a := range attrs {
		if err := m.readAttr(dirfd, name, a); !absent(err) {
			return m, err
		}
	}
	return m, m.readOpaqueFile(dirfd, name)
}

// absent reports whether err, which may be nil, leaves no doubt about a record.
func absent(err error) bool {
	switch err {
	case nil, unix.ENODATA, unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EXDEV,
		unix.EOPNOTSUPP, unix.EACCES, unix.EPERM, unix.ERANGE, unix.E2BIG:
		return true
	}
	return false
}

func (m *Marks) readAttr(dirfd int, name, attr string) error {
	switch attr {
	case "trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque":
		v, err := sys.GetXattr(dirfd, name, attr)
		if err != nil || len(v) == 0 {
			return err
		}
		m.Opaque = m.Opaque || v[0] == 'y'
		m.XattrWhiteouts = m.XattrWhiteouts || v[0] == 'x'
	case "trusted.overlay.redirect", "user.overlay.redirect":
		v, err := sys.GetXattr(dirfd, name, attr)
		if err != nil {
			return err
		}
		m.Redirect = CleanRedirect(string(v))
	}
	return nil
}

// readOpaqueFile reads .wh..wh..opq: an opaque mark, or a redirect when it
// has content.
func (m *Marks) readOpaqueFile(dirfd int, name string) error {
	at := name + "/" + OpaqueFile
	if name == "." {
		at = OpaqueFile
	}
	st, err := sys.StatAt(dirfd, at, sys.DontSync)
	if !absent(err) {
		return err
	}
	if err != nil || !st.IsRegular() {
		return nil
	}
	if st.Size == 0 || st.Size > unix.PathMax {
		m.Opaque = true
		return nil
	}
	fd, err := sys.OpenUntouched(dirfd, at, 0)
	if err != nil {
		m.Opaque = true
		if absent(err) {
			return nil
		}
		return err
	}
	defer sys.Close(fd)
	buf := make([]byte, st.Size)
	n, err := sys.PRead(fd, buf, 0)
	if err != nil {
		return err
	}
	m.Redirect = CleanRedirect(string(buf[:n]))
	m.Opaque = m.Redirect == ""
	return nil
}

// CleanRedirect returns a redirect if it is one of the two forms that
// overlayfs's ovl_check_redirect accepts, else "". A path that climbs out of
// the branch is none.
func CleanRedirect(r string) string {
	if strings.HasPrefix(r, "/") {
		if r != path.Clean(r) || r == "/" || strings.ContainsRune(r, 0) {
			return ""
		}
		return r
	}
	if r == "" || r == "." || r == ".." || strings.ContainsAny(r, "/\x00") {
		return ""
	}
	return r
}

// IsFile reports whether the entry name of dirfd with attributes st is a
// whiteout in one of the forms that occupy the name itself. xattrForm says
// that the directory carries Marks.XattrWhiteouts.
func IsFile(dirfd int, name string, st *sys.Stat, xattrForm bool) (bool, error) {
	if st.IsWhiteout() {
		return true, nil
	}
	if !xattrForm || !st.IsRegular() || st.Size != 0 {
		return false, nil
	}
	for _, ns := range []Namespace{Trusted, User} {
		_, err := sys.GetXattrInto(dirfd, name, string(ns)+"overlay.whiteout", nil)
		if err == nil || !absent(err) {
			return err == nil, err
		}
	}
	return false, nil
}

// HasAUFS reports whether dirfd has the regular file .wh.name.
func HasAUFS(dirfd int, name string) (bool, error) {
	st, err := sys.StatAt(dirfd, Prefix+name, sys.DontSync)
	if absent(err) {
		return err == nil && st.IsRegular(), nil
	}
	return false, err
}
