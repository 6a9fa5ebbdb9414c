package branches

import (
	"bytes"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Object is one file, directory or other inode of a merged tree: where it
// lies, and what the union says of it.
type Object struct {
	Stat sys.Stat // with owner, mode and type as an override attribute says
	dir  *Dir
	part *Part
	name string  // "" for the root
	stub *stubOf // of a file that was copied up by blocks, else nil
}

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// object finds name in the part p of d; "" is the directory itself, which
// only the root is asked for.
func object(d *Dir, p *Part, name string) (*Object, error) {
	o := &Object{dir: d, part: p, name: name}
	err := o.at(func(fd int) (err error) {
		if name == "" {
			o.Stat, err = p.Branch.RootStat()
		} else {
			o.Stat, err = p.Branch.stat(fd, p.Path(d), name)
		}
		if err == nil {
			o.override(fd)
			err = o.readStub(fd)
		}
		return err
	})
	return o, err
}

// at runs fn with the directory that o.name is in.
func (o *Object) at(fn func(fd int) error) error {
	fd, err := o.dir.Acquire(o.part)
	if err != nil {
		return err
	}
	defer o.dir.Release(o.part)
	return fn(fd)
}

// override applies the attribute in which a branch keeps owners and modes
// that its file system could not take (containers-storage, fuse-overlayfs).
func (o *Object) override(fd int) {
	attr := OverrideXattr[o.part.Branch.Override()]
	if attr == "" {
		return
	}
	var buf [whiteout.MaxOverride]byte
	n, err := sys.GetXattrInto(fd, o.name, attr, buf[:])
	if err != nil && attr == OverrideXattr[2] {
		n, err = sys.GetXattrInto(fd, o.name, "user.fuseoverlayfs.override_stat", buf[:])
	}
	st := o.Stat
	if err != nil || !whiteout.ParseOverride(string(buf[:n]), &st) {
		return
	}
	if st.Type() == unix.S_IFLNK && o.Stat.Type() != unix.S_IFLNK {
		return // it has no target that could be read
	}
	o.Stat = st
}

// Portable reports whether an extended attribute belongs to the file rather
// than to a union that keeps records there, or to the host: the label of its
// security policy, its seal of all that.
func Portable(attr string) bool {
	return !whiteout.ReservedXattr(attr) && attr != "security.selinux" && attr != "security.evm"
}

// Xattrs returns the portable extended attributes in order of their names.
func (o *Object) Xattrs() (list []Xattr, err error) {
	if o.Stat.MountRoot {
		return nil, nil // shown as an empty directory or file
	}
	err = o.at(func(fd int) error {
		names, err := sys.ListXattr(fd, o.name)
		if err == unix.EOPNOTSUPP {
			return nil
		}
		slices.Sort(names)
		for _, name := range names {
			if !Portable(name) {
				continue
			}
			v, err := sys.GetXattr(fd, o.name, name)
			if err == unix.ENODATA || err == unix.EPERM || err == unix.EACCES {
				continue // gone since, or not for this user's eyes
			}
			if err != nil {
				return err
			}
			list = append(list, Xattr{name, v})
		}
		return err
	})
	return list, err
}

// Open opens the content of a regular file for reading.
func (o *Object) Open() (Content, error) {
	if o.stub != nil {
		return o.openStub()
	}
	fd := -1
	err := o.at(func(dir int) (err error) {
		for _, ns := range []whiteout.Namespace{whiteout.Trusted, whiteout.User} {
			if _, err := sys.GetXattrInto(dir, o.name, string(ns)+"overlay.metacopy", nil); err == nil {
				return errs.New(errs.Unsupported, "kernel overlay with metacopy=on has copied up its attributes only: its content is still in a lower branch")
			}
		}
		fd, err = sys.OpenUntouched(dir, o.name, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return fdReader(fd), nil
}

// Readlink returns the target of a symbolic link.
func (o *Object) Readlink() (target string, err error) {
	err = o.at(func(dir int) error {
		b, err := sys.Readlink(dir, o.name)
		target = string(b)
		return err
	})
	return target, err
}

// key names the inode of o as link records do, "" where that cannot be.
func (o *Object) key() (key string, err error) {
	err = o.at(func(dir int) error {
		h, err := sys.Handle(dir, o.name)
		key = records.Key(h)
		return err
	})
	return key, err
}

func (o *Object) id() inode { return inode{o.Stat.Dev, o.Stat.Ino} }

// same reports whether a and b cannot be told apart: type, mode, owner, time,
// extended attributes, device, target and content. Content is read last, and
// only when everything else is equal; oneFS is as in Comparison.
func same(a, b *Object, oneFS bool) (bool, error) {
	if a.id() == b.id() && a.part.Branch.Override() == b.part.Branch.Override() {
		return true, nil
	}
	if !sameStat(&a.Stat, &b.Stat) {
		return false, nil
	}
	if equal, err := sameXattrs(a, b); !equal || err != nil {
		return false, err
	}
	switch a.Stat.Type() {
	case unix.S_IFLNK:
		x, err := a.Readlink()
		if err != nil {
			return false, err
		}
		y, err := b.Readlink()
		return x == y, err
	case unix.S_IFREG:
		return sameContent(a, b, oneFS)
	}
	return true, nil
}

func sameStat(a, b *sys.Stat) bool {
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Mtime != b.Mtime {
		return false
	}
	switch a.Type() {
	case unix.S_IFREG:
		return a.Size == b.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		return a.Rdev == b.Rdev
	}
	return true
}

func sameXattrs(a, b *Object) (bool, error) {
	x, err := a.Xattrs()
	if err != nil {
		return false, err
	}
	y, err := b.Xattrs()
	return slices.EqualFunc(x, y, func(p, q Xattr) bool { return p.Name == q.Name && bytes.Equal(p.Value, q.Value) }), err
}

// sameContent compares two regular files of the same size.
func sameContent(a, b *Object, oneFS bool) (bool, error) {
	if a.Stat.Size == 0 {
		return true, nil
	}
	fa, err := a.Open()
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := b.Open()
	if err != nil {
		return false, err
	}
	defer fb.Close()
	if x, ok := fa.(fdReader); ok && oneFS {
		if y, ok := fb.(fdReader); ok && sys.SameExtents(int(x), int(y)) {
			return true, nil
		}
	}
	size := int64(a.Stat.Size)
	x, y := make([]byte, 256<<10), make([]byte, 256<<10)
	for off := int64(0); off < size; off += int64(len(x)) {
		p, q := x[:min(int64(len(x)), size-off)], y[:min(int64(len(y)), size-off)]
		n, err := readFull(fa, p, off)
		if err != nil {
			return false, err
		}
		m, err := readFull(fb, q, off)
		if err != nil || !bytes.Equal(p[:n], q[:m]) {
			return false, err
		}
		if n < len(p) {
			break
		}
	}
	return true, nil
}

// readFull reads at off until buf is full or the file ends.
func readFull(c Content, buf []byte, off int64) (n int, err error) {
	n, err = c.ReadAt(buf, off)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// below appends name to a path in the merged tree, whose root is "/".
func below(dir, name string) string { return strings.TrimSuffix(dir, "/") + "/" + name }
