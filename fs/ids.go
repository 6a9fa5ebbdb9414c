package fs

import (
	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

// overflowID stands for an id outside a mapping, as the kernel's
// overflowuid does.
const overflowID = 65534

// shown returns the id that the mount shows for an id in a branch.
func shown(m []IDMap, id uint32) uint32 {
	if len(m) == 0 {
		return id
	}
	for _, r := range m {
		if id >= r.Outer && id-r.Outer < r.Len {
			return r.Inner + (id - r.Outer)
		}
	}
	return overflowID
}

// stored is the inverse of shown. What belongs to an id outside the mapping
// is stored as the overflow id: Podman, root outside the container's own
// namespace, makes /etc/mtab in such a mount.
func stored(m []IDMap, id uint32) uint32 {
	if len(m) == 0 {
		return id
	}
	for _, r := range m {
		if id >= r.Inner && id-r.Inner < r.Len {
			return r.Outer + (id - r.Inner)
		}
	}
	return overflowID
}

func (f *FS) shownUID(id uint32) uint32 {
	switch {
	case f.opts.SquashUID != nil:
		return *f.opts.SquashUID
	case f.opts.SquashToRoot:
		return 0
	}
	return shown(f.opts.UIDMap, id)
}

func (f *FS) shownGID(id uint32) uint32 {
	switch {
	case f.opts.SquashGID != nil:
		return *f.opts.SquashGID
	case f.opts.SquashToRoot:
		return 0
	}
	return shown(f.opts.GIDMap, id)
}

// storedUID returns the owner on disk of what belongs to id in the mount. In
// a squashed mount everything belongs to one user, whoever asks; a daemon
// that cannot give files away owns them itself.
func (f *FS) storedUID(id uint32) uint32 {
	switch {
	case f.opts.SquashUID != nil && f.euid == 0:
		return *f.opts.SquashUID
	case f.opts.SquashUID != nil || f.opts.SquashToRoot:
		return f.euid
	}
	return stored(f.opts.UIDMap, id)
}

func (f *FS) storedGID(id uint32) uint32 {
	switch {
	case f.opts.SquashGID != nil && f.euid == 0:
		return *f.opts.SquashGID
	case f.opts.SquashGID != nil || f.opts.SquashToRoot:
		return f.egid
	}
	return stored(f.opts.GIDMap, id)
}

// identity is the number by which an inode of a branch is known in the
// mount: unique, the same in every mount of the same stack, and what stat shows.
func (f *FS) identity(b *branches.Branch, st *sys.Stat) uint64 {
	return f.identityOf(b, st.Dev, st.Ino)
}

const (
	inoBits   = 48
	inoHashed = 1 << 63 // does not fit: hashed, and out of the way of those that do
)

func (f *FS) identityOf(b *branches.Branch, dev, ino uint64) uint64 {
	pos := uint64(b.ID)
	if dev == b.Dev && ino < 1<<inoBits {
		return pos<<inoBits | ino
	}
	h := pos
	if dev != b.Dev { // a btrfs subvolume, say
		h = mix(h ^ dev)
	}
	return mix(mix(h)^ino) | inoHashed
}

// mix is the finaliser of splitmix64, a bijection that spreads all bits.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// showIno applies ino32_t.
func (f *FS) showIno(ino uint64) uint64 {
	if f.opts.Ino32 {
		return uint64(uint32(ino) ^ uint32(ino>>32))
	}
	return ino
}
