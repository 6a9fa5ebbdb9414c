package fs

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

// StatFs implements fuse.RawFileSystem: the file system of the topmost
// branch (ovl_statfs) or, with the option sum, of all branches; with the name
// length that can really be made.
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	all := f.stack.Branches()
	if !f.opts.SumSpace {
		all = all[:1]
	}
	if err := sumSpace(all, out); err != nil {
		return status(err)
	}
	out.NameLen = uint32(f.maxName(int(out.NameLen)))
	return fuse.OK
}

// maxName is the longest name that can be made, when the file system takes
// names of fsMax bytes.
func (f *FS) maxName(fsMax int) int {
	longest := fsMax
	for _, b := range f.stack.Writable() {
		longest = min(longest, b.Format.MaxName(fsMax))
	}
	return longest
}

// sumSpace adds up the file systems of the branches, each once: "When the block
// size of all branches are not equal, aufs chooses the smallest one and
// calculate the number of blocks (including bavail and bfree)" (aufs(5), sum).
func sumSpace(all []*branches.Branch, out *fuse.StatfsOut) error {
	seen := map[unix.Fsid]bool{}
	var each []unix.Statfs_t
	size := int64(math.MaxInt64)
	out.NameLen = math.MaxUint32
	for _, b := range all {
		st, err := sys.Statfs(b.Root)
		if err != nil {
			return err
		}
		if seen[st.Fsid] && st.Fsid != (unix.Fsid{}) {
			continue
		}
		seen[st.Fsid] = true
		each = append(each, st)
		size = min(size, st.Bsize)
		out.NameLen = min(out.NameLen, uint32(st.Namelen))
		out.Frsize = uint32(st.Frsize)
	}
	for i := range each {
		st := &each[i]
		times := uint64(st.Bsize / size)
		out.Blocks = addCapped(out.Blocks, st.Blocks, times)
		out.Bfree = addCapped(out.Bfree, st.Bfree, times)
		out.Bavail = addCapped(out.Bavail, st.Bavail, times)
		out.Files = addCapped(out.Files, st.Files, 1)
		out.Ffree = addCapped(out.Ffree, st.Ffree, 1)
	}
	out.Bsize = uint32(size)
	if len(each) > 1 {
		out.Frsize = out.Bsize
	}
	return nil
}

// addCapped returns a + b*times, or the greatest number there is.
func addCapped(a, b, times uint64) uint64 {
	if b > (math.MaxUint64-a)/times {
		return math.MaxUint64
	}
	return a + b*times
}
