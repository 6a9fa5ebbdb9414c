package kernelbackend

import (
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// maxLook is how many names ForeignMarks looks at in one branch. Branches
// with whiteouts are changes of something larger, and rarely large themselves.
const maxLook = 20000

// ForeignMarks looks for the whiteouts of other dialects in those branches of o
// that do not say what they are written in, as layers that somebody has unpacked:
// the kernel's overlay would show them as files, and what they hide. It
// returns the path of one, "" for none among the first 20,000 names of a branch.
// The lowest branch, where whiteouts hide nothing, is not looked at.
func (o *Overlay) ForeignMarks() (string, error) {
	list := o.Lowers
	if o.Upper != "" {
		list = append([]string{o.Upper}, list...)
	}
	for _, dir := range list[:max(len(list)-1, 0)] {
		fd, err := sys.OpenRoot(dir)
		if err != nil {
			return "", err
		}
		path, err := markIn(fd)
		sys.Close(fd)
		if path != "" || err != nil {
			return filepath.Join(dir, path), err
		}
	}
	return "", nil
}

// Inside returns the lower of o in which its upper or work directory lies, "" for
// none. The kernel's overlay answers ELOOP there, where the FUSE union hides them.
func (o *Overlay) Inside() string {
	for _, l := range o.Lowers {
		lower, err := realPath(l)
		if err != nil {
			continue // MountOverlay will say so
		}
		for _, dir := range []string{o.Upper, o.Work} {
			if real, err := realPath(dir); dir != "" && err == nil && within(real, lower) {
				return l
			}
		}
	}
	return ""
}

func markIn(root int) (string, error) {
	if _, known, err := whiteout.Recorded(root); known || err != nil {
		return "", nil // MountOverlay looks at that
	}
	if _, known := whiteout.KernelNamespace(root); known {
		return "", nil
	}
	seen := 0
	for queue := []string{"."}; len(queue) > 0 && seen < maxLook; queue = queue[1:] {
		entries, err := listing(root, queue[0])
		if err != nil {
			return "", err
		}
		seen += len(entries)
		for _, e := range entries {
			path := filepath.Join(queue[0], e.Name)
			if whiteout.Reserved(e.Name) {
				return path, nil
			}
			if e.Type == unix.DT_DIR {
				queue = append(queue, path)
			}
		}
	}
	return "", nil
}

// listing reads a directory; one that this user may not read, or that another
// file system is mounted on, has nothing in it that would be shown.
func listing(root int, path string) ([]sys.Dirent, error) {
	fd, err := sys.OpenUntouched(root, path, unix.O_DIRECTORY)
	switch err {
	case nil:
	case unix.EACCES, unix.EXDEV, unix.ENOENT, unix.ENOTDIR:
		return nil, nil
	default:
		return nil, err
	}
	defer sys.Close(fd)
	return sys.ReadDir(fd)
}
