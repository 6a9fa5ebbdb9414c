package whiteout

import "strings"

// Names on disk. Part of the on-disk formats: never change.
const (
	Prefix     = ".wh."         // AUFS: .wh.NAME is a whiteout of NAME
	OpaqueFile = ".wh..wh..opq" // AUFS: the directory it lies in is opaque
	Base       = ".wh..wh.aufs" // AUFS: the file that whiteouts are links of
	LinkDir    = ".wh..wh.plnk" // AUFS: pseudo-links; here copies whose names are all in lowers
	FormatFile = ".wh..wh.layerfs"
	StubDir    = FormatFile          // the directory of an upper's private pool; where it is, attributes work and no FormatFile is
	PrivateDir = ".wh..wh.layerfs.d" // work directory of a br= branch, which has none of its own
)

// Reserved reports whether name belongs to the union itself and must not be
// seen or made through a mount.
func Reserved(name string) bool { return strings.HasPrefix(name, Prefix) }

// reservedXattrs are prefixes of attributes by which a union keeps its
// records. Whoever could set them through the mount could delete, redirect
// or disguise what is not his (podman #3582).
var reservedXattrs = []string{
	"trusted.overlay.", "user.overlay.",
	"user.fuseoverlayfs.", "security.fuseoverlayfs.", "trusted.fuseoverlayfs.",
	"user.containers.override_",
	"trusted.layerfs.", "user.layerfs.",
}

// ReservedXattr reports whether an extended attribute belongs to the union:
// hidden, refused and never copied up.
func ReservedXattr(attr string) bool {
	for _, p := range reservedXattrs {
		if strings.HasPrefix(attr, p) {
			return true
		}
	}
	return false
}
