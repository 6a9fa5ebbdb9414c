package check

import (
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Names of AUFS, see its Documentation/filesystems/aufs/design/02struct.txt.
const (
	aufsOrphans = ".wh..wh.orph" // files that are open without a name
	aufsRenamed = ".wh..wh..dr." // dirren
	aufsHinode  = ".wh..wh.hino" // dirren
)

// aufsTemporary is what AUFS renames to while it copies up, renames and
// removes (au_whtmp_ren).
var aufsTemporary = regexp.MustCompile(`^\.wh\.\.wh\..+\.[0-9a-f]{4}$`)

// reserved deals with the reserved names that are no whiteouts.
func (d *directory) reserved() {
	for _, name := range d.v.Reserved {
		switch {
		case name == whiteout.OpaqueFile && d.regular(name):
		case d.v.Root && (name == whiteout.Base || name == whiteout.LinkDir || strings.HasPrefix(name, whiteout.FormatFile)):
		case d.v.Root && name == aufsOrphans:
			d.orphans(name)
		case strings.HasPrefix(name, aufsRenamed), name == aufsHinode:
			d.found("aufs-dirren", d.at(name), "a directory rename of AUFS's dirren, which only AUFS follows", "", nil)
		case aufsTemporary.MatchString(name):
			d.found("leftover-temporary", d.at(name), "a temporary of AUFS", "removed", func() error { return sys.RemoveAll(d.v.FD, name) })
		default:
			d.found("unknown-name", d.at(name), "a reserved name that is not known here, hidden from users: rename or remove it", "", nil)
		}
	}
}

func (d *directory) regular(name string) bool {
	st, err := sys.StatAt(d.v.FD, name, 0)
	return err == nil && st.IsRegular()
}

// orphans reports what AUFS kept without a name when it ended.
func (d *directory) orphans(dir string) {
	fd, err := sys.OpenDir(d.v.FD, dir)
	if err != nil {
		d.unreadable(d.at(dir), err)
		return
	}
	defer sys.Close(fd)
	entries, err := sys.ReadDirAt(fd)
	if err != nil && err != unix.ENOENT {
		d.unreadable(d.at(dir), err)
	}
	for _, e := range entries {
		d.found("leftover-temporary", d.at(dir)+"/"+e.Name, "a temporary of AUFS", "removed", func() error { return sys.RemoveAll(fd, e.Name) })
	}
}
