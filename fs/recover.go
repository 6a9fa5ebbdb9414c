package fs

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
)

// recover completes what a daemon that was killed has left between two steps in
// the branch of links. It runs before the branch is used.
func (f *FS) recover(links *linkIndex) error {
	work := links.branch.Work
	if !work.Unclean {
		return nil
	}
	if err := finishRenames(links.branch); err != nil {
		return fmt.Errorf("completing an interrupted rename: %w", err)
	}
	if err := f.mendIndex(links); err != nil {
		return fmt.Errorf("mending the link index: %w", err)
	}
	f.collect(links)
	work.Trust()
	return nil
}

// mendIndex brings the numbers of links up to date and takes out of the index
// what no name leads to any more.
func (f *FS) mendIndex(links *linkIndex) error {
	entries, err := sys.ReadDirAt(links.fd)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch e.Name[0] {
		case 'h', 'i':
			err = links.mendCopy(e.Name)
		case 'n':
			err = f.mendHidden(links, e.Name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return nil
}

// mendCopy mends the entry of a copy.
func (l *linkIndex) mendCopy(key string) error {
	at := location{l.fd, key, noRelease}
	r, ok := l.recordOf(key, at)
	if !ok {
		return nil
	}
	st, err := sys.StatAt(at.fd, at.name, 0)
	if err != nil {
		return err
	}
	if r.Absolute {
		r.N, r.Absolute = r.N-int32(st.Nlink), false
		if err := l.saveRecord(at, st.Type(), r); err != nil {
			return err
		}
	}
	if int64(st.Nlink)+int64(r.N) <= 0 {
		l.remove(key)
	}
	return nil
}

// mendHidden settles whether the name whose deletion a note announces is gone.
func (f *FS) mendHidden(links *linkIndex, name string) error {
	text, err := sys.Readlink(links.fd, name)
	if err != nil {
		return err
	}
	number, path, announced := strings.Cut(string(text), " ?")
	var adj int
	if _, err := fmt.Sscan(number, &adj); !announced || err != nil {
		return nil
	}
	covered, err := f.covered(path, strings.TrimPrefix(name, hiddenName("")))
	if err != nil {
		return err
	}
	if covered {
		adj--
	}
	if adj == 0 {
		return sys.Unlink(links.fd, name)
	}
	return links.putNote(name, fmt.Sprint(adj))
}

// covered reports whether the merged tree shows something else at path, or
// nothing, than the lower file with the given key.
func (f *FS) covered(path, key string) (bool, error) {
	dir := f.stack.Root()
	names := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	for i, name := range names {
		res, err := f.stack.Lookup(dir, name)
		if err != nil {
			return false, err
		}
		if i == len(names)-1 {
			if res.Kind == branches.NotFound || res.Kind == branches.Directory || res.Home != nil {
				return true, nil
			}
			at, err := acquire(dir, res.Where, name)
			if err != nil {
				return false, err
			}
			defer at.release()
			now, err := linkKey(at, f.identity(res.Where.Branch, &res.Stat))
			return now != key, err
		}
		if res.Kind != branches.Directory {
			return true, nil
		}
		dir = res.Dir
		defer dir.Close()
	}
	return true, nil
}

// A rename that takes two steps on disk is noted before the first, so that
// one which was interrupted between them can be completed.

// noteRename notes a rename that will have the inodes fromIno and toIno at its
// two names until a whiteout replaces the first. done must be called in the end.
func noteRename(work *branches.Work, from, to *side, fromIno, toIno uint64) (done func(), err error) {
	path := func(s *side) string { return strings.TrimLeft(s.parent.dir.tree.Path()+"/"+s.name, "/") }
	note := records.Rename{FromIno: fromIno, ToIno: toIno, From: path(from), To: path(to)}
	tmp := work.Name()
	fd, err := sys.OpenIn(work.Tmp, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0600)
	if err != nil {
		return nil, err
	}
	err = sys.PWriteAll(fd, []byte(note.String()), 0)
	sys.Close(fd)
	name := records.RenamePrefix + tmp
	if err == nil {
		err = sys.Rename(work.Tmp, tmp, work.Keep, name, 0)
	}
	if err != nil {
		work.Discard(tmp)
		return nil, err
	}
	return func() {
		if sys.Unlink(work.Keep, name) != nil {
			work.Distrust()
		}
	}, nil
}

func finishRenames(b *branches.Branch) error {
	entries, err := sys.ReadDirAt(b.Work.Keep)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name, records.RenamePrefix) {
			continue
		}
		if err := finishRename(b, e.Name); err != nil {
			return err
		}
		if err := sys.Unlink(b.Work.Keep, e.Name); err != nil {
			return err
		}
	}
	return nil
}

// finishRename takes the second step of a rename if it is due. A path that has
// gone, or leads to something else, says that it is not.
func finishRename(b *branches.Branch, name string) error {
	fd, err := sys.OpenIn(b.Work.Keep, name, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	buf := make([]byte, 3*unix.PathMax)
	n, err := sys.PRead(fd, buf, 0)
	if err != nil {
		return err
	}
	note, ok := records.ParseRename(string(buf[:n]))
	if !ok {
		return nil
	}
	to, st, err := inBranch(b, note.To)
	if err != nil {
		return nil
	}
	to.release()
	if st.Ino != note.ToIno {
		return nil
	}
	from, st, err := inBranch(b, note.From)
	if err != nil {
		return nil
	}
	defer from.release()
	if st.Ino != note.FromIno {
		return nil
	}
	return replaceByWhiteout(b, from, st.IsDir())
}

// inBranch finds a path in b.
func inBranch(b *branches.Branch, path string) (location, sys.Stat, error) {
	dir, name := ".", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	fd, err := sys.OpenDir(b.Root, dir)
	if err != nil {
		return location{}, sys.Stat{}, err
	}
	st, err := sys.StatAt(fd, name, 0)
	if err != nil {
		sys.Close(fd)
	}
	return location{fd, name, func() { sys.Close(fd) }}, st, err
}
