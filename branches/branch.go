package branches

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// inode identifies a directory on this machine.
type inode struct{ dev, ino uint64 }

// Branch is one directory tree of a stack. Mode, Attr, Work, Format and the
// Index change only while nobody else uses the stack (live.go), all else never.
type Branch struct {
	ID        int    // unique in the stack and never reused; 0 is the upper that Open found
	Index     int    // 0 is the top
	Path      string // as given, made absolute; for messages and listings only
	Mode      Mode
	Attr      Attr
	Work      *Work           // nil unless changes may go here
	Format    whiteout.Format // what is written here; zero without Work
	Root      int             // O_PATH descriptor
	Dev       uint64
	whiteouts bool   // whiteouts in it count (AUFS: rw, and ro+wh)
	statFlags int    // sys.DontSync where our own mountpoint may lie inside
	mountRel  string // path of our mountpoint below Root, "" when it is not inside
	hidden    []inode
	HasMounts bool         // something is mounted below Root
	NoSuid    bool         // its mount ignores set-user-id bits and file capabilities
	CopyUps   atomic.Int64 // things copied to it
	Stubs     atomic.Bool  // it has a directory whiteout.StubDir, so that there may be stubs in it
	override  int          // stat-override mode found in the branch root, see fs
}

// Writable reports whether changes may go to b.
func (b *Branch) Writable() bool { return b.Work != nil }

// Override returns which xattr holds owner and mode of the files in this
// branch: 0 none, 1 security., 2 user.containers. (fuse-overlayfs's xattr_permissions).
func (b *Branch) Override() int { return b.override }

// OverrideXattr is the attribute that each Override mode keeps its records in.
var OverrideXattr = [...]string{"", "security.fuseoverlayfs.override_stat", "user.containers.override_stat"}

func (b *Branch) detectOverride() {
	for mode, attr := range OverrideXattr {
		if mode == 0 {
			continue
		}
		if _, err := sys.GetXattrInto(b.Root, "", attr, nil); err == nil {
			b.override = mode
		}
	}
	if _, err := sys.GetXattrInto(b.Root, "", "user.fuseoverlayfs.override_stat", nil); err == nil && b.override == 0 {
		b.override = 2
	}
}

// stat returns the attributes of name in the directory at fd, whose path in
// the branch is dirPath, as the union may show them: a mount point is an empty
// directory (or file) with the attributes of what is mounted there, and what
// must not be seen is ENOENT.
func (b *Branch) stat(fd int, dirPath, name string) (sys.Stat, error) {
	if b.mountRel != "" && join(dirPath, name) == b.mountRel {
		// Our own mountpoint: asking for it would be asking ourselves.
		return sys.Stat{}, unix.ENOENT
	}
	st, err := sys.StatAt(fd, name, b.statFlags)
	if err != nil {
		return st, err
	}
	for _, h := range b.hidden {
		if h.ino == st.Ino && h.dev == st.Dev {
			return sys.Stat{}, unix.ENOENT
		}
	}
	if st.MountRoot && !st.IsDir() {
		st.Size, st.Blocks = 0, 0
	}
	return st, nil
}

// join appends name to a path relative to a branch root, whose root is ".".
func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// hides reports whether the branch records that name is deleted below it,
// by a mark beside the name; st is nil when the branch has no such entry.
func (p *Part) hidesBeside(fd int, name string) (bool, error) {
	if !p.Branch.whiteouts || p.noMarks.Load() || len(name)+len(whiteout.Prefix) > unix.NAME_MAX {
		return false, nil
	}
	return whiteout.HasAUFS(fd, name)
}
