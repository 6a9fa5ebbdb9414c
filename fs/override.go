package fs

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Where the daemon may not own files as the mount shows them, owner, mode and
// type live in an extended attribute: "uid:gid:octal mode[:type]", as
// fuse-overlayfs and containers-storage write it (xattr_permissions, force_mask).

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
	var buf [whiteout.MaxOverride]byte
	n, err := sys.GetXattrInto(fd, name, attr, buf[:])
	if err != nil && attr == branches.OverrideXattr[2] {
		n, err = sys.GetXattrInto(fd, name, "user.fuseoverlayfs.override_stat", buf[:])
	}
	if err == nil {
		whiteout.ParseOverride(string(buf[:n]), st)
	}
}

func formatOverride(uid, gid, mode, rdev uint32) string {
	word := "file"
	for w, t := range whiteout.OverrideTypes {
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
