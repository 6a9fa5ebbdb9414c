package fs

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclUnknown = 0
	aclNone    = 1
	aclSome    = 2
)

// owner is what a new object must be given.
type owner struct {
	uid, gid uint32 // on disk
	mode     uint32 // permissions
	native   bool   // creating it in its directory does all that by itself
	acl      bool   // the directory has a default ACL
}

// ownerOf decides about owner and permissions of a newcomer, as the kernel
// does in inode_init_owner and posix_acl_create, in a directory that looks as
// dirfd does. inPlace says that it is made in that one, whose set-group-id bit
// then acts by itself.
func (f *FS) ownerOf(c *newcomer, dirfd int, inPlace bool) (owner, error) {
	if c.link != nil {
		return owner{native: inPlace}, nil
	}
	o := owner{mode: c.mode & 07777, acl: f.hasDefaultACL(c, dirfd)}
	if !o.acl {
		o.mode &^= c.umask
	}
	o.uid, o.gid = f.storedUID(c.uid), f.storedGID(c.gid)
	if f.opts.XattrPermissions != 0 {
		return o, nil
	}
	if inPlace && o.uid == f.euid && o.gid == f.egid {
		o.native = true
		return o, nil
	}
	st, err := sys.FStat(dirfd)
	if err != nil {
		return o, err
	}
	if st.Mode&unix.S_ISGID != 0 {
		o.gid = st.GID
		if c.mode&unix.S_IFMT == unix.S_IFDIR {
			o.mode |= unix.S_ISGID
		}
	}
	return o, nil
}

func (f *FS) hasDefaultACL(c *newcomer, dirfd int) bool {
	if f.opts.NoACL || f.opts.NoXattrs {
		return false
	}
	d := c.parent.dir
	if home := d.tree.Home(); d.acl == aclUnknown || d.aclOf != home {
		d.acl, d.aclOf = aclNone, home
		if n, err := sys.GetXattrInto(dirfd, "", aclDefault, nil); err == nil && n > 0 {
			d.acl = aclSome
		}
	}
	return d.acl == aclSome
}

// stage makes the object under a temporary name and gives it its owner.
func (f *FS) stage(c *newcomer, o owner, dirfd int) (tmp string, from location, err error) {
	work := c.on.Work
	tmp = work.Name()
	from = location{work.Tmp, "", noRelease}
	if o.acl {
		if from, err = aclStage(work, dirfd); err != nil {
			return "", from, err
		}
	}
	err = c.make(from.fd, tmp, o.mode)
	if err == nil && c.link == nil {
		err = f.giveAway(from.fd, tmp, c, o)
	}
	if err != nil {
		_ = sys.RemoveAll(from.fd, tmp)
		from.release()
	}
	return tmp, from, err
}

// aclStage makes a temporary directory with the default ACL of dirfd, so that
// what is made inside inherits it as it would in dirfd.
func aclStage(work *branches.Work, dirfd int) (location, error) {
	name := work.Name()
	if err := sys.Mkdir(work.Tmp, name, 0700); err != nil {
		return location{}, err
	}
	acl, err := sys.GetXattr(dirfd, "", aclDefault)
	if err == nil {
		err = sys.SetXattr(work.Tmp, name, aclDefault, acl, 0)
	}
	var fd int
	if err == nil {
		fd, err = sys.OpenDir(work.Tmp, name)
	}
	if err != nil {
		work.Discard(name)
		return location{}, err
	}
	return location{fd, "", func() { sys.Close(fd); work.Discard(name) }}, nil
}

func (f *FS) giveAway(dirfd int, name string, c *newcomer, o owner) error {
	if f.opts.XattrPermissions != 0 {
		st, err := sys.StatAt(dirfd, name, 0)
		if err != nil {
			return err
		}
		mode := o.mode
		if o.acl {
			mode = st.Mode&0777 | o.mode&07000 // what the default ACL allows
		}
		st.UID, st.GID, st.Mode = o.uid, o.gid, c.mode&unix.S_IFMT|mode
		return f.setOverride(dirfd, name, &st)
	}
	err := sys.ChownAt(dirfd, name, o.uid, o.gid)
	if err == unix.EPERM || err == unix.EINVAL {
		err = nil // not ours to give: it stays the daemon's, as fuse-overlayfs has it when squashed
	}
	if err != nil || o.mode&(unix.S_ISUID|unix.S_ISGID) == 0 || c.mode&unix.S_IFMT == unix.S_IFLNK {
		return err
	}
	// chown has cleared them. The other bits are what a default ACL has made of them.
	st, err := sys.StatAt(dirfd, name, 0)
	if err != nil {
		return err
	}
	return sys.ChmodAt(dirfd, name, st.Mode&0777|o.mode&07000)
}
