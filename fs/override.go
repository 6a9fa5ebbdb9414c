package fs

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

// Where the daemon may not own files as the mount shows them, owner, mode and
// type live in an extended attribute: "uid:gid:octal mode[:type]", as
// fuse-overlayfs and containers-storage write it (xattr_permissions, force_mask).

const maxOverride = 64 // no honest value is longer

// overrideTypes are the words for file types. Part of the on-disk format.
var overrideTypes = map[string]uint32{
	"dir": unix.S_IFDIR, "file": unix.S_IFREG, "symlink": unix.S_IFLNK,
	"pipe": unix.S_IFIFO, "socket": unix.S_IFSOCK,
}

// overrideAttr returns the attribute in which b keeps overrides, "" for none.
func (f *FS) overrideAttr(b *branches.Branch) string {
	if b == nil {
		return ""
	}
	mode := b.Override()
	if b.Writable() && f.opts.XattrPermissions != 0 {
		mode = f.opts.XattrPermissions
	}
	return branches.OverrideXattr[mode]
}

// applyOverride replaces in st what the override attribute of the file says.
// A value that makes no sense is no value.
func (f *FS) applyOverride(b *branches.Branch, fd int, name string, st *sys.Stat) {
	attr := f.overrideAttr(b)
	if attr == "" {
		return
	}
	var buf [maxOverride]byte
	n, err := sys.GetXattrInto(fd, name, attr, buf[:])
	if err != nil && attr == branches.OverrideXattr[2] {
		n, err = sys.GetXattrInto(fd, name, "user.fuseoverlayfs.override_stat", buf[:])
	}
	if err == nil {
		parseOverride(string(buf[:n]), st)
	}
}

// parseOverride applies a value to st if all of it is valid.
func parseOverride(value string, st *sys.Stat) bool {
	f := strings.SplitN(value, ":", 4)
	if len(f) < 3 {
		return false
	}
	uid, err1 := strconv.ParseUint(f[0], 10, 32)
	gid, err2 := strconv.ParseUint(f[1], 10, 32)
	mode, err3 := strconv.ParseUint(f[2], 8, 32)
	if err1 != nil || err2 != nil || err3 != nil {
		return false
	}
	typ, rdev := st.Type(), st.Rdev
	if len(f) == 4 {
		var ok bool
		if typ, rdev, ok = parseOverrideType(f[3]); !ok || (typ == unix.S_IFDIR) != st.IsDir() {
			return false
		}
	}
	st.UID, st.GID, st.Rdev = uint32(uid), uint32(gid), rdev
	st.Mode = typ | uint32(mode)&07777
	return true
}

func parseOverrideType(word string) (typ, rdev uint32, ok bool) {
	if typ, ok = overrideTypes[word]; ok {
		return typ, 0, true
	}
	kind, dev, _ := strings.Cut(word, "-")
	switch kind {
	case "block":
		typ = unix.S_IFBLK
	case "char":
		typ = unix.S_IFCHR
	default:
		return 0, 0, false
	}
	major, minor, found := strings.Cut(strings.ReplaceAll(dev, "-", ":"), ":")
	a, err1 := strconv.ParseUint(major, 10, 12)
	b, err2 := strconv.ParseUint(minor, 10, 20)
	if !found || err1 != nil || err2 != nil {
		return 0, 0, false
	}
	return typ, uint32(b)&0xff | uint32(a)<<8 | uint32(b)&^0xff<<12, true
}

func formatOverride(uid, gid, mode, rdev uint32) string {
	word := "file"
	for w, t := range overrideTypes {
		if t == mode&unix.S_IFMT {
			word = w
		}
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFBLK:
		word = fmt.Sprintf("block-%d:%d", unix.Major(uint64(rdev)), unix.Minor(uint64(rdev)))
	case unix.S_IFCHR:
		word = fmt.Sprintf("char-%d:%d", unix.Major(uint64(rdev)), unix.Minor(uint64(rdev)))
	}
	return fmt.Sprintf("%d:%d:%04o:%s", uid, gid, mode&07777, word)
}

// updateOverride changes owner or mode (^0 leaves one alone) in the override
// attribute of a file in the writable branch b.
func (f *FS) updateOverride(b *branches.Branch, at location, uid, gid, mode uint32) error {
	st, err := sys.StatAt(at.fd, at.name, 0)
	if err != nil {
		return err
	}
	f.applyOverride(b, at.fd, at.name, &st)
	if uid != ^uint32(0) {
		st.UID = uid
	}
	if gid != ^uint32(0) {
		st.GID = gid
	}
	if mode != ^uint32(0) {
		st.Mode = st.Type() | mode&07777
	} else if !st.IsDir() {
		st.Mode &^= unix.S_ISUID | unix.S_ISGID // as chown does
	}
	return f.setOverride(at.fd, at.name, &st)
}

func (f *FS) setOverride(fd int, name string, st *sys.Stat) error {
	attr := branches.OverrideXattr[f.opts.XattrPermissions]
	return sys.SetXattr(fd, name, attr, []byte(formatOverride(st.UID, st.GID, st.Mode, st.Rdev)), 0)
}
