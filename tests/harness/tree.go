package harness

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// MkTree makes what spec says below root, one entry per line:
//
//	dir/             a directory
//	name=content     a regular file
//	name->target     a symbolic link
//	name=>other      a hard link to other
//	name%1:3         a character device; %0:0 is overlay's whiteout
//	name|            a fifo
//	name             what is there already, for attributes only
//
// and behind it, separated by blanks, attributes: !0750 the mode, @name=value
// an extended attribute, ^1000000000.5 the mtime in seconds, ~uid:gid the
// owner. Parents are made when missing.
func MkTree(t testing.TB, root, spec string) {
	t.Helper()
	for _, line := range strings.Split(spec, "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		p := mkEntry(t, root, fields[0])
		for _, a := range fields[1:] {
			mkAttr(t, p, a)
		}
	}
}

// Tree is MkTree below a directory of the test.
func (e *Env) Tree(dir, spec string) *Env {
	e.T.Helper()
	require.NoError(e.T, os.MkdirAll(e.P(dir), 0755))
	MkTree(e.T, e.P(dir), spec)
	return e
}

func mkEntry(t testing.TB, root, s string) string {
	t.Helper()
	i := strings.IndexAny(s, "=%|")
	if j := strings.Index(s, "->"); j >= 0 && (i < 0 || j < i) {
		i = j
	}
	name, rest := s, ""
	if i >= 0 {
		name, rest = s[:i], s[i:]
	}
	p := filepath.Join(root, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(p), 0755))
	var err error
	switch {
	case strings.HasSuffix(name, "/"):
		err = os.MkdirAll(p, 0755)
	case rest == "":
		_, err = os.Lstat(p)
	case strings.HasPrefix(rest, "->"):
		err = os.Symlink(rest[2:], p)
	case strings.HasPrefix(rest, "=>"):
		err = os.Link(filepath.Join(root, rest[2:]), p)
	case rest[0] == '=':
		err = os.WriteFile(p, []byte(rest[1:]), 0644)
	case rest[0] == '|':
		err = unix.Mknod(p, unix.S_IFIFO|0644, 0)
	case rest[0] == '%':
		var maj, min uint32
		_, err = fmt.Sscanf(rest, "%%%d:%d", &maj, &min)
		require.NoError(t, err, s)
		err = unix.Mknod(p, unix.S_IFCHR, int(unix.Mkdev(maj, min)))
	}
	require.NoError(t, err, "making %s", s)
	return p
}

func mkAttr(t testing.TB, p, a string) {
	t.Helper()
	var err error
	switch a[0] {
	case '!':
		var mode uint64
		mode, err = strconv.ParseUint(a[1:], 8, 32)
		require.NoError(t, err, a)
		err = unix.Chmod(p, uint32(mode))
	case '@':
		name, value, _ := strings.Cut(a[1:], "=")
		err = unix.Lsetxattr(p, name, []byte(value), 0)
	case '^':
		var secs float64
		secs, err = strconv.ParseFloat(a[1:], 64)
		require.NoError(t, err, a)
		err = SetTime(p, time.Unix(int64(secs), int64((secs-float64(int64(secs)))*1e9)))
	case '~':
		var uid, gid int
		_, err = fmt.Sscanf(a, "~%d:%d", &uid, &gid)
		require.NoError(t, err, a)
		err = os.Lchown(p, uid, gid)
	default:
		err = fmt.Errorf("attribute %q is not known", a)
	}
	require.NoError(t, err, "%s %s", p, a)
}

// SetTime sets atime and mtime without following a link.
func SetTime(p string, tm time.Time) error {
	ts := unix.NsecToTimespec(tm.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// SomeTime is a time long ago, for SetTime.
var SomeTime = time.Unix(1e9, 0)

// Names lists a tree as sorted lines in MkTree's notation, without
// attributes. Content is shown up to 40 bytes.
func Names(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	walk(t, root, func(rel, p string, st *unix.Stat_t) {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			rel += "/"
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			require.NoError(t, err)
			if len(data) > 40 {
				data = append(data[:40:40], "..."...)
			}
			rel += "=" + string(data)
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			require.NoError(t, err)
			rel += "->" + target
		case unix.S_IFIFO:
			rel += "|"
		case unix.S_IFCHR:
			rel += fmt.Sprintf("%%%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		lines = append(lines, rel)
	})
	return lines
}

// DumpOptions says what of a tree is compared.
type DumpOptions struct {
	Times bool                   // mtimes, to the nanosecond
	Names bool                   // of link groups the names only, not st_nlink
	Skip  func(rel string) bool  // what to leave out, with all below it
	Xattr func(name string) bool // which attributes count; nil: all but the union's own
}

// Dump lists a tree completely: type, mode, owner, size, content, link
// groups, extended attributes, targets and devices.
func Dump(t testing.TB, root string, o DumpOptions) []string {
	t.Helper()
	type id struct{ dev, ino uint64 }
	links := map[id][]string{}
	var lines []string
	var skipped string
	visit := func(emit bool) func(rel, p string, st *unix.Stat_t) {
		return func(rel, p string, st *unix.Stat_t) {
			if skipped != "" && strings.HasPrefix(rel, skipped) {
				return
			}
			if o.Skip != nil && o.Skip(rel) {
				skipped = rel + "/"
				return
			}
			isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
			k := id{st.Dev, st.Ino}
			if !emit {
				if !isDir {
					links[k] = append(links[k], rel)
				}
				return
			}
			line := fmt.Sprintf("%s %06o %d:%d", rel, st.Mode, st.Uid, st.Gid)
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFREG:
				line += fmt.Sprintf(" size=%d sha=%s", st.Size, Sum(t, p))
			case unix.S_IFLNK:
				target, err := os.Readlink(p)
				require.NoError(t, err)
				line += " ->" + target
			case unix.S_IFCHR, unix.S_IFBLK:
				line += fmt.Sprintf(" dev=%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
			}
			if !isDir && len(links[k]) > 1 {
				line += " links{" + strings.Join(links[k], ",") + "}"
			}
			if !isDir && !o.Names && st.Nlink > 1 {
				line += fmt.Sprintf(" nlink=%d", st.Nlink)
			}
			if o.Times {
				line += fmt.Sprintf(" mtime=%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
			}
			lines = append(lines, line+xattrText(t, p, o.Xattr))
		}
	}
	walk(t, root, visit(false))
	walk(t, root, visit(true))
	return lines
}

func xattrText(t testing.TB, p string, want func(string) bool) string {
	t.Helper()
	var b strings.Builder
	for _, name := range ListXattr(t, p) {
		if want != nil && !want(name) {
			continue
		}
		if want == nil && (strings.Contains(name, ".overlay.") || strings.Contains(name, ".layerfs.") || strings.Contains(name, "fuseoverlayfs")) {
			continue
		}
		fmt.Fprintf(&b, " %s=%q", name, GetXattr(t, p, name))
	}
	return b.String()
}

// ListXattr returns the sorted names of a file's extended attributes.
func ListXattr(t testing.TB, p string) []string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err == unix.ENOTSUP {
		return nil
	}
	require.NoError(t, err, "listxattr %s", p)
	var names []string
	for _, s := range strings.Split(string(buf[:n]), "\x00") {
		if s != "" {
			names = append(names, s)
		}
	}
	sort.Strings(names)
	return names
}

// GetXattr returns an extended attribute that must exist.
func GetXattr(t testing.TB, p, name string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Lgetxattr(p, name, buf)
	require.NoError(t, err, "getxattr %s %s", p, name)
	return string(buf[:n])
}

// Sum is a short checksum of a file's content.
func Sum(t testing.TB, p string) string {
	t.Helper()
	data, err := os.ReadFile(p)
	if os.IsPermission(err) {
		return "unreadable"
	}
	require.NoError(t, err)
	return fmt.Sprintf("%x", sha256.Sum256(data))[:16]
}

// Stat is lstat that must succeed.
func Stat(t testing.TB, p string) *unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(p, &st), "lstat %s", p)
	return &st
}

// walk visits a tree in the order of names, the root itself left out.
func walk(t testing.TB, root string, visit func(rel, p string, st *unix.Stat_t)) {
	t.Helper()
	var into func(dir, rel string)
	into = func(dir, rel string) {
		entries, err := os.ReadDir(dir)
		if os.IsPermission(err) {
			return
		}
		require.NoError(t, err)
		for _, e := range entries {
			p, r := filepath.Join(dir, e.Name()), filepath.Join(rel, e.Name())
			st := Stat(t, p)
			visit(r, p, st)
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				into(p, r)
			}
		}
	}
	into(root, "")
}
