package fs

import (
	"log"
	"time"

	"github.com/layerfs/layerfs/internal/stub"
)

// SyncPolicy says how much of a copy-up reaches the disk before its rename.
type SyncPolicy uint8

const (
	SyncAuto     SyncPolicy = iota // the data, written out or durable (sys.Ordered)
	SyncStrict                     // the data, the metadata and the directories
	SyncVolatile                   // nothing, and fsync does nothing either
)

// CopyUpMode says how the content of big files is copied up.
type CopyUpMode uint8

const (
	CopyFull  CopyUpMode = iota // all of it
	CopyBlock                   // what is changed, in blocks
	CopyAuto                    // all of it by reflink, else in blocks
)

// DefaultThreshold is from which size in bytes on a file is copied up by blocks.
const DefaultThreshold = 256 << 10

// IDMap is one line of a uid or gid mapping: Len ids from Inner on, as the
// mount shows them, are Outer and the following in the branches.
type IDMap struct{ Inner, Outer, Len uint32 }

// Revalidate is how long the kernel may keep what others may change.
const Revalidate = time.Second

// Options are the properties of a mount that do not belong to its branches.
type Options struct {
	// Opens has the kernel ask for every open of a file or directory, and tell of its
	// end. Without it the kernel opens by itself, which spares two requests for each.
	Opens bool
	// Passthrough has the kernel read and write files that are in the upper, and all of
	// a mount that changes nothing, by itself. It takes root, and Opens.
	Passthrough      bool
	Outside          bool          // others may change the branches: what is found is compared with what is known
	Watch            bool          // and are watched for it (udba=notify)
	Timeout          time.Duration // how long the kernel may keep entries and attributes; 0: not at all
	UIDMap, GIDMap   []IDMap
	SquashToRoot     bool
	SquashUID        *uint32 // non-nil: every file belongs to this user; wins over SquashToRoot
	SquashGID        *uint32
	XattrPermissions int  // 0, 1 or 2, as in fuse-overlayfs
	StaticNlink      bool // directories have one link
	NoXattrs, NoACL  bool
	Sync             SyncPolicy
	RedirectDir      bool // false: renaming a lower or merged directory is EXDEV
	SumSpace         bool // statfs adds up the branches
	ShowMarks        bool // whiteouts and opaque marks are shown (shwh); for a read-only mount
	AlwaysOpaque     bool // every new directory is opaque (diropq=always)
	Ino32            bool
	ReadOnly         bool
	NoAtime          bool // reading leaves the access times in the upper alone; in lowers it always does
	StrictAtime      bool // every read of a file in the upper sets its access time
	CopyUp           CopyUpMode
	Threshold        int64       // bytes from which on a file is copied up by blocks
	OriginPaths      bool        // lower files are looked for where they were when they were copied up, if no branch has them
	PoolPath         string      // of the shared pool, for messages
	Pools            stub.Pools  // where the blocks go; nil when the mount can open no pool
	Log              *log.Logger // nil: log.Default()
}
