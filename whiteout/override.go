package whiteout

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// MaxOverride is the length of the longest value that ParseOverride is for.
const MaxOverride = 64

// OverrideTypes are the words for file types. Part of the on-disk format.
var OverrideTypes = map[string]uint32{
	"dir": unix.S_IFDIR, "file": unix.S_IFREG, "symlink": unix.S_IFLNK,
	"pipe": unix.S_IFIFO, "socket": unix.S_IFSOCK,
}

// ParseOverride replaces owner, mode and type in st by what a stat-override
// attribute says, "uid:gid:octal mode[:type]", as fuse-overlayfs and
// containers-storage write it. It reports whether the value makes sense; if
// not, st stays as it is.
func ParseOverride(value string, st *sys.Stat) bool {
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
	if typ, ok = OverrideTypes[word]; ok {
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
