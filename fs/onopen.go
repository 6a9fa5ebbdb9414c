package fs

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

// copyUpOnOpen does what the branch of n asks for when n is opened: "which means
// `copy-up on open' always choose the nearest upper writable branch. Even if
// there are multiple writable branches set these attributes, the internal
// copy-up operation is done once, not recursively" (aufs(5), coo_reg). Where
// there is no such branch the file is opened where it is.
func (f *FS) copyUpOnOpen(n *node) error {
	n.mu.Lock()
	b := f.branchOfLocked(n)
	if b == nil || b.Attr.OnOpen == branches.StayOnOpen || len(n.names) == 0 || f.readOnly() {
		n.mu.Unlock()
		return nil
	}
	p := n.names[0]
	n.mu.Unlock()
	if n.typ != unix.S_IFREG && (n.typ != unix.S_IFDIR || b.Attr.OnOpen != branches.CopyFilesDirs) {
		return nil
	}
	to := f.stack.Nearest(p.dir.dir.tree, b.Index)
	if to == nil {
		return nil
	}
	done, err := f.copyUpWith(n, copyOptions{to: to, moved: b.Attr.OnOpen == branches.MoveFiles})
	if !done || err != nil || b.Attr.OnOpen != branches.MoveFiles {
		return err
	}
	return f.dropSource(n, p, b)
}

// dropSource removes the file that n was copied from, in the writable branch b:
// "moo unlinks the copy-up source after the successful operation". A file that
// has got another name or place meanwhile is left alone.
func (f *FS) dropSource(n *node, p place, b *branches.Branch) error {
	p.dir.dir.mu.Lock()
	defer p.dir.dir.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	part := p.dir.dir.tree.Part(b)
	if part == nil || !b.Writable() || len(n.names) != 1 || n.names[0].dir != p.dir || n.names[0].name != p.name || n.link != "" {
		return nil
	}
	at, err := acquire(p.dir.dir.tree, part, p.name)
	if err != nil {
		return err
	}
	defer at.release()
	return sys.KeepTimes(at.fd, func() error { return sys.Unlink(at.fd, at.name) })
}
