package whiteout

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// Deleted returns the names that the directory open at dirfd, whose marks are
// m, records as deleted in the branches below: by whiteouts of any dialect.
func Deleted(dirfd int, m Marks) ([]string, error) {
	entries, err := sys.ReadDirUntouched(dirfd)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		switch {
		case Reserved(e.Name):
			if e.Type != unix.DT_DIR && !strings.HasPrefix(e.Name, Prefix+Prefix) && e.Name != Prefix {
				names = append(names, e.Name[len(Prefix):])
			}
			continue
		case e.Type != unix.DT_CHR && e.Type != unix.DT_UNKNOWN && !(m.XattrWhiteouts && e.Type == unix.DT_REG):
			continue
		}
		st, err := sys.StatAt(dirfd, e.Name, 0)
		if err != nil {
			return nil, err
		}
		is, err := IsFile(dirfd, e.Name, &st, m.XattrWhiteouts)
		if err != nil {
			return nil, err
		}
		if is {
			names = append(names, e.Name)
		}
	}
	return names, nil
}
