package fs

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// wouldElevate reports whether a set-user-id bit or a capability that means
// nothing in src would mean something in dst (CVE-2023-0386).
func wouldElevate(src, dst *branches.Branch) bool { return src.NoSuid && !dst.NoSuid }

// copyAttributes gives the copy at to, in dst, what st and the extended
// attributes of the file at from, in src, say: owner, attributes, mode, and last
// the times; c is a truncation or nil.
func (f *FS) copyAttributes(from location, src *branches.Branch, to location, dst *branches.Branch, st *sys.Stat, c *cut) error {
	mode := st.Mode & 07777
	if wouldElevate(src, dst) && !st.IsDir() {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	mtime := sys.Timespec(st.Mtime)
	if c != nil {
		mtime.Nsec = sys.Omit // the copy is new
		if c.kill {
			mode &^= f.killable(st, c.who)
		}
	}
	if f.opts.XattrPermissions != 0 {
		kept := *st
		kept.Mode = st.Type() | mode
		if err := f.setOverride(to.fd, to.name, &kept); err != nil {
			return err
		}
	} else if err := sys.ChownAt(to.fd, to.name, st.UID, st.GID); err != nil {
		if err != unix.EPERM && err != unix.EINVAL {
			return err
		}
		// A user cannot give files away, nor to an owner that his namespace
		// does not know: the copy is his, and loses what its owner lent.
		if st.UID != f.euid || st.GID != f.egid {
			mode &^= unix.S_ISUID | unix.S_ISGID
		}
	}
	if err := copyXattrs(from, to, dst, c != nil || wouldElevate(src, dst)); err != nil {
		return err
	}
	if st.Type() != unix.S_IFLNK && f.opts.XattrPermissions == 0 {
		if err := sys.ChmodAt(to.fd, to.name, mode); err != nil {
			return err
		}
	}
	return sys.UtimesAt(to.fd, to.name, sys.Timespec(st.Atime), mtime)
}

// copyXattrs copies the extended attributes, ACLs and capabilities included,
// by value. What the user may not set is left out, as cp -a does, and what the
// branch dst may lack; other errors end the copy-up.
func copyXattrs(from, to location, dst *branches.Branch, noCapability bool) error {
	attrs, err := sys.ListXattr(from.fd, from.name)
	if err == unix.EOPNOTSUPP || err == unix.EXDEV {
		return nil
	}
	if err != nil {
		return err
	}
	for _, a := range attrs {
		if whiteout.ReservedXattr(a) || a == "security.evm" || noCapability && a == capability {
			continue
		}
		v, err := sys.GetXattr(from.fd, from.name, a)
		if err == nil {
			err = sys.SetXattr(to.fd, to.name, a, v, 0)
		}
		switch err {
		case nil, unix.EPERM, unix.EACCES, unix.EOPNOTSUPP, unix.ENODATA:
		default:
			if !dst.Attr.MayLack(a) {
				return err
			}
		}
	}
	return nil
}
