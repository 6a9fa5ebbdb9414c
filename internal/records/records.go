// Package records has the encodings of what a mount notes for itself about an
// upper: in attributes of its files and in the work directory. The mount
// (package fs) writes them; what examines an upper offline reads them too.
//
// All of it is part of the on-disk format: never change.
package records

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Attributes, without their namespace.
const (
	FormatAttr = "layerfs.format" // on the root: what whiteouts are written in
	LinksAttr  = "layerfs.links"  // on the root: some files have link records
	OriginAttr = "layerfs.origin" // 8 bytes, big endian: the inode number shown
	LinkAttr   = "layerfs.link"   // a Link
	KernelAttr = "layerfs.kernel" // on the root: which features of kernel overlay it was written with that nothing else reads, "metacopy index"
)

// TrustedHint, on the root, is a copy of a format record that lies in trusted.
// attributes, for those who cannot see these.
const TrustedHint = "user.layerfs.trusted"

// KeepDir is the directory in a work directory where what follows lies.
const KeepDir = "layerfs"

// KernelVolatile is the mark that kernel overlay leaves in a work directory.
const KernelVolatile = "work/incompat/volatile"

// Names in WORKDIR/layerfs.
const (
	LinksDir     = "links"    // the link index
	LiveMark     = "live"     // from the mount until its clean end
	VolatileMark = "volatile" // from a volatile mount until its clean end: after a crash what was never synced may be missing. Of a kernel mount: the boot during which that would be no loss
	LowersList   = "lowers"   // the lowers of a kernel mount which the table of mounts does not name, each ended by a zero byte
	RenamePrefix = "rename"   // Renames that take two steps
)

// Link is what is recorded of the links of a file in the upper.
type Link struct {
	Key string // in the link index
	N   int32
	// Absolute: N links are shown, else N more than are on disk.
	Absolute bool
}

func (r Link) String() string {
	if r.Absolute {
		return fmt.Sprintf("%s =%d", r.Key, r.N)
	}
	return fmt.Sprintf("%s %d", r.Key, r.N)
}

const (
	maxHandle = 100             // bytes of a file handle that make a key
	maxKey    = 1 + 2*maxHandle // a letter and the bytes in hex
)

// Key names a lower inode by its file handle, which survives reboots and other
// branch orders; "" when there is no handle or it is too long.
func Key(handle []byte) string {
	if handle == nil || len(handle) > maxHandle {
		return ""
	}
	return "h" + hex.EncodeToString(handle)
}

// IsKey reports whether name is a key of the link index.
func IsKey(name string) bool {
	return len(name) >= 2 && len(name) <= maxKey && (name[0] == 'h' || name[0] == 'i') &&
		strings.Trim(name[1:], "0123456789abcdef") == ""
}

// ParseLink reads a record; one that makes no sense is none.
func ParseLink(text string) (r Link, ok bool) {
	key, number, ok := strings.Cut(text, " ")
	if !ok || !IsKey(key) {
		return r, false
	}
	r.Key = key
	number, r.Absolute = strings.CutPrefix(number, "=")
	n, err := strconv.ParseInt(number, 10, 32)
	r.N = int32(n)
	return r, err == nil
}

// NoteName is where the index has the record of a file that takes no attributes.
func NoteName(key string) string { return "r" + key }

// Announced reports whether text, the note n… of the link index about a lower
// file, announces the deletion of a name that may or may not have taken place.
func Announced(text string) bool { return strings.Contains(text, " ?") }

// Rename is the note of a rename that takes two steps on disk. The inode
// numbers are those of what is at the two names between the steps; then what
// is at From is to be replaced by a whiteout.
type Rename struct {
	FromIno, ToIno uint64
	From, To       string // paths in the upper
}

func (r Rename) String() string {
	return fmt.Sprintf("%d %d\x00%s\x00%s", r.FromIno, r.ToIno, r.From, r.To)
}

// ParseRename is the inverse of String.
func ParseRename(text string) (r Rename, ok bool) {
	part := strings.Split(text, "\x00")
	if len(part) != 3 {
		return r, false
	}
	_, err := fmt.Sscanf(part[0], "%d %d", &r.FromIno, &r.ToIno)
	r.From, r.To = part[1], part[2]
	return r, err == nil
}
