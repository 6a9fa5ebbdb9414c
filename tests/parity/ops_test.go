package parity

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// op is one operation, the same for both sides. do returns what a program
// would learn beyond the error.
type op struct {
	text string
	user bool // made by an ordinary user
	mask int  // the umask
	do   func(s *side) (string, error)
}

// source makes the operations of a history.
type source struct {
	*rand.Rand
	known []string // what exists, as of the last comparison

	plain    bool // a plain directory is among the sides
	rootOnly bool // the operation being made is not for the user
}

var leaves = []string{"a", "b", "c", "d", "e", "f"}

// path is something that exists, more often than not.
func (g *source) path() string {
	if len(g.known) > 0 && g.IntN(4) > 0 {
		return g.known[g.IntN(len(g.known))]
	}
	p := leaves[g.IntN(len(leaves))]
	for g.IntN(2) == 0 && strings.Count(p, "/") < 2 {
		p += "/" + leaves[g.IntN(len(leaves))]
	}
	return p
}

func (g *source) slot() int { return g.IntN(slots) }

func pick[T any](g *source, of ...T) T { return of[g.IntN(len(of))] }

func (g *source) next() op {
	g.rootOnly = false
	o := g.one()
	o.user = g.IntN(4) == 0 && !g.rootOnly
	o.mask = pick(g, 0, 022, 077)
	return o
}

// plain makes an op that answers with its error only.
func plain(text string, do func(s *side) error) op {
	return op{text: text, do: func(s *side) (string, error) { return "", do(s) }}
}

func (g *source) one() op {
	kinds := []func(g *source) op{
		(*source).open, (*source).open, (*source).open, (*source).openNew, (*source).tmpfile,
		(*source).write, (*source).write, (*source).write, (*source).read, (*source).read, (*source).mapped,
		(*source).ftruncate, (*source).fallocate, (*source).copyRange, (*source).fstat, (*source).readdir, (*source).onHandle,
		(*source).make, (*source).make, (*source).make, (*source).link, (*source).link, (*source).linkHandle,
		(*source).rename, (*source).rename, (*source).rename, (*source).rename,
		(*source).remove, (*source).remove, (*source).remove,
		(*source).attributes, (*source).attributes, (*source).xattr, (*source).xattr, (*source).acl,
		(*source).look, (*source).look, (*source).closing,
	}
	return kinds[g.IntN(len(kinds))](g)
}

func (g *source) open() op {
	return g.openWith(pick(g, unix.O_RDONLY, unix.O_RDONLY, unix.O_RDWR, unix.O_RDWR, unix.O_WRONLY, unix.O_RDWR|unix.O_TRUNC,
		unix.O_WRONLY|unix.O_APPEND, unix.O_RDONLY|unix.O_DIRECTORY, unix.O_RDWR|unix.O_CREAT, unix.O_PATH))
}

func (g *source) openNew() op { return g.openWith(unix.O_RDWR | unix.O_CREAT | unix.O_EXCL) }

func (g *source) openWith(flags int) op {
	p, slot, mode := g.path(), g.slot(), pick[uint32](g, 0644, 0666, 0600, 0777, 0400)
	flags |= unix.O_NONBLOCK | pick(g, 0, unix.O_NOFOLLOW)
	return plain(fmt.Sprintf("%d = open(%s, %#x, %o)", slot, p, flags, mode), func(s *side) (err error) {
		s.close(slot)
		s.fds[slot], err = unix.Open(s.at(p), flags|unix.O_CLOEXEC, mode)
		return err
	})
}

func (g *source) tmpfile() op {
	p, slot := g.path(), g.slot()
	return plain(fmt.Sprintf("%d = open(%s, O_TMPFILE)", slot, p), func(s *side) (err error) {
		s.close(slot)
		s.fds[slot], err = unix.Open(s.at(p), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0640)
		return err
	})
}

func (g *source) closing() op {
	slot := g.slot()
	return plain(fmt.Sprintf("close(%d)", slot), func(s *side) error { s.close(slot); return nil })
}

func (g *source) bytes() []byte {
	b := make([]byte, pick(g, 1, 10, 100, 4096, 5000, 20000))
	fill := byte('a' + g.IntN(26))
	for i := range b {
		b[i] = fill
	}
	return b
}

func (g *source) offset() int64 {
	return pick(g, 0, 0, int64(g.IntN(100)), int64(g.IntN(40000)), 4096, 65536)
}

func (g *source) write() op {
	slot, data, off := g.slot(), g.bytes(), g.offset()
	return op{text: fmt.Sprintf("pwrite(%d, %d x %c, %d)", slot, len(data), data[0], off), do: func(s *side) (string, error) {
		n, err := unix.Pwrite(s.fds[slot], data, off)
		return fmt.Sprint(n, modeAfter(s.fds[slot])), err
	}}
}

// modeAfter returns the mode of an open file that was changed, which may have
// cleared set-user-id. The kernel has been told so, but where it checks who may
// make a hard link it goes by what it has until somebody asks.
func modeAfter(fd int) string {
	var st unix.Stat_t
	_ = unix.Fstat(fd, &st)
	return fmt.Sprintf(" %06o", st.Mode)
}

func (g *source) read() op {
	slot, off, buf := g.slot(), g.offset(), make([]byte, pick(g, 10, 5000, 100000))
	return op{text: fmt.Sprintf("pread(%d, %d, %d)", slot, len(buf), off), do: func(s *side) (string, error) {
		n, err := unix.Pread(s.fds[slot], buf, off)
		return sum(buf[:max(n, 0)]), err
	}}
}

func sum(b []byte) string { return fmt.Sprintf("%d bytes %.6x", len(b), sha256.Sum256(b)) }

// mapped changes a byte through a mapping and reads the rest of the page. Not
// where set-user-id could be lost: a daemon without privileges writes the page
// with a call that clears it, a store to a mapping of a plain file does not.
func (g *source) mapped() op {
	slot, at, c := g.slot(), g.IntN(30000), byte('A'+g.IntN(26))
	return op{text: fmt.Sprintf("mmap(%d)[%d] = %c", slot, at, c), do: func(s *side) (string, error) {
		var st unix.Stat_t
		if err := unix.Fstat(s.fds[slot], &st); err != nil || st.Mode&(unix.S_IFMT|06000) != unix.S_IFREG || st.Size == 0 {
			return "", err
		}
		b, err := unix.Mmap(s.fds[slot], 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return "", err
		}
		defer unix.Munmap(b)
		b[at%len(b)] = c
		return sum(b), unix.Msync(b, unix.MS_SYNC)
	}}
}

func (g *source) ftruncate() op {
	slot, size := g.slot(), g.offset()
	return plain(fmt.Sprintf("ftruncate(%d, %d)", slot, size), func(s *side) error { return unix.Ftruncate(s.fds[slot], size) })
}

func (g *source) fallocate() op {
	slot, off, size := g.slot(), g.offset(), g.offset()+1
	mode := pick[uint32](g, 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE)
	return op{text: fmt.Sprintf("fallocate(%d, %#x, %d, %d)", slot, mode, off, size), do: func(s *side) (string, error) {
		err := unix.Fallocate(s.fds[slot], mode, off, size)
		return modeAfter(s.fds[slot]), err
	}}
}

func (g *source) copyRange() op {
	from, to, a, b, size := g.slot(), g.slot(), g.offset(), g.offset(), 1+g.IntN(30000)
	return op{text: fmt.Sprintf("copy_file_range(%d, %d, %d, %d, %d)", from, a, to, b, size), do: func(s *side) (string, error) {
		a, b := a, b
		n, err := unix.CopyFileRange(s.fds[from], &a, s.fds[to], &b, size, 0)
		return fmt.Sprint(n, modeAfter(s.fds[to])), err
	}}
}

func (g *source) fstat() op {
	slot := g.slot()
	return op{text: fmt.Sprintf("fstat(%d)", slot), do: func(s *side) (string, error) {
		var st unix.Stat_t
		err := unix.Fstat(s.fds[slot], &st)
		return statText(&st), err
	}}
}

func statText(st *unix.Stat_t) string {
	text := fmt.Sprintf("%06o %d:%d", st.Mode, st.Uid, st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFREG, unix.S_IFLNK:
		text += fmt.Sprintf(" nlink=%d size=%d", st.Nlink, st.Size)
	default:
		text += fmt.Sprintf(" nlink=%d dev=%d", st.Nlink, st.Rdev)
	}
	if st.Nlink == 0 && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return text // removed: its whiteouts go behind it, which is a new time
	}
	if st.Mtim.Sec < 1<<30 {
		text += fmt.Sprintf(" mtime=%d", st.Mtim.Sec) // one that was set
	}
	return text
}

func (g *source) readdir() op {
	slot := g.slot()
	return op{text: fmt.Sprintf("getdents(%d)", slot), do: func(s *side) (string, error) {
		if _, err := unix.Seek(s.fds[slot], 0, 0); err != nil {
			return "", err
		}
		var names []string
		buf := make([]byte, 8192)
		for {
			n, err := unix.Getdents(s.fds[slot], buf)
			if err != nil || n == 0 {
				// Where layerfs has made a lower, the kernel shows .wh..wh.plnk.
				names = slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, ".wh.") })
				slices.Sort(names)
				return strings.Join(names, " "), err
			}
			_, _, names = unix.ParseDirent(buf[:n], -1, names)
		}
	}}
}

// onHandle changes what is open.
func (g *source) onHandle() op {
	slot, mode := g.slot(), uint32(g.IntN(010000))
	switch g.IntN(4) {
	case 0:
		return plain(fmt.Sprintf("fchmod(%d, %o)", slot, mode), func(s *side) error { return unix.Fchmod(s.fds[slot], mode) })
	case 1:
		return plain(fmt.Sprintf("fsync(%d)", slot), func(s *side) error { return unix.Fsync(s.fds[slot]) })
	case 2:
		return plain(fmt.Sprintf("fsetxattr(%d)", slot), func(s *side) error {
			return unix.Fsetxattr(s.fds[slot], "user.handle", []byte(fmt.Sprint(mode)), 0)
		})
	default:
		// What openat and the like find in a directory that may be gone by now.
		name := pick(g, leaves...)
		return plain(fmt.Sprintf("mkdirat(%d, %s)", slot, name), func(s *side) error { return unix.Mkdirat(s.fds[slot], name, 0755) })
	}
}

func (g *source) make() op {
	p, mode := g.path(), pick[uint32](g, 0777, 0755, 0700, 0666, 0644, 01777, 02775, 04755)
	switch g.IntN(8) {
	case 0, 1, 2, 3:
		return plain(fmt.Sprintf("mkdir(%s, %o)", p, mode), func(s *side) error { return unix.Mkdir(s.at(p), mode) })
	case 4:
		return plain(fmt.Sprintf("mknod(%s, file %o)", p, mode), func(s *side) error { return unix.Mknod(s.at(p), unix.S_IFREG|mode, 0) })
	case 5:
		return plain(fmt.Sprintf("mkfifo(%s, %o)", p, mode), func(s *side) error { return unix.Mknod(s.at(p), unix.S_IFIFO|mode, 0) })
	case 6:
		return plain(fmt.Sprintf("mknod(%s, null)", p), func(s *side) error { return unix.Mknod(s.at(p), unix.S_IFCHR|0666, int(unix.Mkdev(1, 3))) })
	default:
		target := g.path()
		return plain(fmt.Sprintf("symlink(%s, %s)", target, p), func(s *side) error { return unix.Symlink(target, s.at(p)) })
	}
}

func (g *source) link() op {
	p, q := g.path(), g.path()
	return plain(fmt.Sprintf("link(%s, %s)", p, q), func(s *side) error { return unix.Link(s.at(p), s.at(q)) })
}

func (g *source) linkHandle() op {
	slot, p := g.slot(), g.path()
	return plain(fmt.Sprintf("linkat(%d, %s)", slot, p), func(s *side) error {
		if s.fds[slot] < 0 {
			return unix.EBADF
		}
		return unix.Linkat(unix.AT_FDCWD, harness.FdPath(s.fds[slot]), unix.AT_FDCWD, s.at(p), unix.AT_SYMLINK_FOLLOW)
	})
}

func (g *source) rename() op {
	p, q, flags := g.path(), g.path(), pick[uint](g, 0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT,
		unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE)
	if flags == unix.RENAME_WHITEOUT && g.plain {
		flags = 0 // unions refuse it, a plain directory would get a whiteout
	}
	return plain(fmt.Sprintf("rename(%s, %s, %d)", p, q, flags), func(s *side) error {
		return unix.Renameat2(unix.AT_FDCWD, s.at(p), unix.AT_FDCWD, s.at(q), flags)
	})
}

func (g *source) remove() op {
	p := g.path()
	if g.IntN(3) == 0 {
		return plain(fmt.Sprintf("rmdir(%s)", p), func(s *side) error { return unix.Rmdir(s.at(p)) })
	}
	return plain(fmt.Sprintf("unlink(%s)", p), func(s *side) error { return unix.Unlink(s.at(p)) })
}

func (g *source) attributes() op {
	p, mode, id, sec := g.path(), uint32(g.IntN(010000)), g.IntN(3), int64(1e6+g.IntN(1e6))
	switch g.IntN(5) {
	case 0:
		return plain(fmt.Sprintf("chmod(%s, %o)", p, mode), func(s *side) error { return unix.Fchmodat(unix.AT_FDCWD, s.at(p), mode, 0) })
	case 1:
		mode = mode&07000 | 0777 // keep the tree reachable for the ordinary user
		return plain(fmt.Sprintf("chmod(%s, %o)", p, mode), func(s *side) error { return unix.Fchmodat(unix.AT_FDCWD, s.at(p), mode, 0) })
	case 2:
		return plain(fmt.Sprintf("lchown(%s, %d)", p, id), func(s *side) error { return unix.Lchown(s.at(p), id, pick2(id)) })
	case 3:
		ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: sec}}
		return plain(fmt.Sprintf("utimens(%s, %d)", p, sec), func(s *side) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, s.at(p), ts, unix.AT_SYMLINK_NOFOLLOW)
		})
	default:
		size := g.offset()
		return plain(fmt.Sprintf("truncate(%s, %d)", p, size), func(s *side) error { return unix.Truncate(s.at(p), size) })
	}
}

// pick2 gives a group that goes with an owner.
func pick2(id int) int { return (id + 1) % 3 }

func (g *source) xattr() op {
	p, name := g.path(), pick(g, "user.a", "user.b", "trusted.t", "security.x", "nonsense")
	value := []byte(strings.Repeat(pick(g, "x", "y", "z"), pick(g, 0, 1, 10, 300)))
	switch g.IntN(4) {
	case 0, 1:
		flags := pick(g, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE)
		return plain(fmt.Sprintf("lsetxattr(%s, %s, %d bytes, %d)", p, name, len(value), flags), func(s *side) error {
			return unix.Lsetxattr(s.at(p), name, value, flags)
		})
	case 2:
		return plain(fmt.Sprintf("lremovexattr(%s, %s)", p, name), func(s *side) error { return unix.Lremovexattr(s.at(p), name) })
	default:
		buf := make([]byte, pick(g, 0, 5, 1000))
		return op{text: fmt.Sprintf("lgetxattr(%s, %s, %d)", p, name, len(buf)), do: func(s *side) (string, error) {
			n, err := unix.Lgetxattr(s.at(p), name, buf)
			return fmt.Sprint(n), err
		}}
	}
}

// acls are values of posix_acl attributes: version 2, then tag, permissions
// and id of each entry.
var acls = []string{
	aclText(1, 7, 2, 6, 4, 5, 16, 7, 32, 0), // u::rwx,u:1:rw-,g::r-x,m::rwx,o::---
	aclText(1, 6, 4, 4, 32, 4),              // what a mode says
	aclText(1, 7, 2, 7, 4, 7, 16, 1, 32, 7),
	aclText(1, 7, 4, 7), // no entry for others: invalid
	"",
}

func aclText(entries ...byte) string {
	text := "\x02\x00\x00\x00"
	for i := 0; i < len(entries); i += 2 {
		id := "\xff\xff\xff\xff"
		if entries[i] == 2 { // ACL_USER
			id = "\x01\x00\x00\x00"
		}
		text += string([]byte{entries[i], 0, entries[i+1], 0}) + id
	}
	return text
}

func (g *source) acl() op {
	p, name, value := g.path(), pick(g, "system.posix_acl_access", "system.posix_acl_default"), pick(g, acls...)
	if value == "" {
		// Overlay takes set-group-id away when an owner outside the group removes
		// an ACL (ovl_set_or_remove_acl); plain file systems and layerfs do not.
		g.rootOnly = true
		return plain(fmt.Sprintf("removexattr(%s, %s)", p, name), func(s *side) error { return unix.Removexattr(s.at(p), name) })
	}
	return plain(fmt.Sprintf("setxattr(%s, %s, %x)", p, name, value), func(s *side) error {
		return unix.Setxattr(s.at(p), name, []byte(value), 0)
	})
}

func (g *source) look() op {
	p := g.path()
	switch g.IntN(3) {
	case 0:
		return op{text: fmt.Sprintf("lstat(%s)", p), do: func(s *side) (string, error) {
			var st unix.Stat_t
			err := unix.Lstat(s.at(p), &st)
			return statText(&st), err
		}}
	case 1:
		return op{text: fmt.Sprintf("readlink(%s)", p), do: func(s *side) (string, error) {
			buf := make([]byte, 4096)
			n, err := unix.Readlink(s.at(p), buf)
			return string(buf[:max(n, 0)]), err
		}}
	default:
		mode := uint32(g.IntN(8))
		return plain(fmt.Sprintf("access(%s, %d)", p, mode), func(s *side) error {
			return unix.Faccessat2(unix.AT_FDCWD, s.at(p), mode, unix.AT_EACCESS)
		})
	}
}
