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
// itself when name is "."). Attributes that cannot be read, or make no
// sense, count as absent: a broken branch must not break the mount.
func ReadMarks(dirfd int, name string) Marks {
	var m Marks
	attrs, _ := sys.ListXattr(dirfd, name)
	for _, a := range attrs {
		switch a {
		case "trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque":
			switch v, _ := sys.GetXattr(dirfd, name, a); {
			case len(v) > 0 && v[0] == 'y':
				m.Opaque = true
			case len(v) > 0 && v[0] == 'x':
				m.XattrWhiteouts = true
			}
		case "trusted.overlay.redirect", "user.overlay.redirect":
			if v, err := sys.GetXattr(dirfd, name, a); err == nil {
				m.Redirect = cleanRedirect(string(v))
			}
		}
	}
	m.readOpaqueFile(dirfd, name)
	return m
}

// readOpaqueFile reads .wh..wh..opq: an opaque mark, or a redirect when it
// has content.
func (m *Marks) readOpaqueFile(dirfd int, name string) {
	at := name + "/" + OpaqueFile
	if name == "." {
		at = OpaqueFile
	}
	st, err := sys.StatAt(dirfd, at, sys.DontSync)
	if err != nil || !st.IsRegular() {
		return
	}
	if st.Size == 0 || st.Size > unix.PathMax {
		m.Opaque = true
		return
	}
	fd, err := sys.OpenIn(dirfd, at, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		m.Opaque = true
		return
	}
	defer sys.Close(fd)
	buf := make([]byte, st.Size)
	n, err := sys.PRead(fd, buf, 0)
	if err == nil {
		m.Redirect = cleanRedirect(string(buf[:n]))
	}
	m.Opaque = m.Redirect == ""
}

// cleanRedirect returns a redirect if it is one of the two forms that
// overlayfs's ovl_check_redirect accepts, else "". A path that climbs out of
// the branch is none.
func cleanRedirect(r string) string {
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
func IsFile(dirfd int, name string, st *sys.Stat, xattrForm bool) bool {
	if st.IsWhiteout() {
		return true
	}
	if !xattrForm || !st.IsRegular() || st.Size != 0 {
		return false
	}
	for _, ns := range []Namespace{Trusted, User} {
		if _, err := sys.GetXattrInto(dirfd, name, string(ns)+"overlay.whiteout", nil); err == nil {
			return true
		}
	}
	return false
}

// HasAUFS reports whether dirfd has the regular file .wh.name.
func HasAUFS(dirfd int, name string) bool {
	st, err := sys.StatAt(dirfd, Prefix+name, sys.DontSync)
	return err == nil && st.IsRegular()
}
