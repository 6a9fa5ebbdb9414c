package oci

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/whiteout"
)

// kind is what the name of an entry makes of it.
type kind int

const (
	ordinary  kind = iota
	deletion       // .wh.NAME
	opaque         // .wh..wh..opq
	pseudo         // .wh..wh.plnk/NAME: a file that hard links in the tar refer to
	foreign        // other records of AUFS
	malformed      // see the error
)

// components splits a path in a tar; the root has none. There is no climbing:
// what an honest archiver means by ".." is nothing that a layer needs.
func components(name string) ([]string, error) {
	var parts []string
	for _, c := range strings.Split(name, "/") {
		switch {
		case c == "" || c == ".":
			continue
		case c == "..":
			return nil, errs.New(errs.Corrupt, "the path leads out of where it begins (..)")
		case len(c) > unix.NAME_MAX && !(strings.HasPrefix(c, whiteout.Prefix) && len(c) <= unix.NAME_MAX+len(whiteout.Prefix)):
			return nil, errs.New(errs.Corrupt, "a name of %d bytes: %d are possible", len(c), unix.NAME_MAX)
		case strings.IndexByte(c, 0) >= 0:
			return nil, errs.New(errs.Corrupt, "a name with a zero byte")
		}
		parts = append(parts, c)
	}
	if n := len(strings.Join(parts, "/")); n >= unix.PathMax {
		return nil, errs.New(errs.Corrupt, "a path of %d bytes: %d are possible", n, unix.PathMax-1)
	}
	return parts, nil
}

// classify says what an entry with this path is. For a deletion the last
// component of target is the name that it is of.
func classify(path []string) (k kind, target []string, err error) {
	for i, c := range path {
		if !whiteout.Reserved(c) {
			continue
		}
		last := i == len(path)-1
		switch {
		case c == whiteout.LinkDir && i == 0 && len(path) == 2:
			return pseudo, path, nil
		case c == opaqueName && last:
			return opaque, path[:i], nil
		case strings.HasPrefix(c, whiteout.Prefix+whiteout.Prefix):
			return foreign, nil, nil
		case !last:
			return malformed, nil, errs.New(errs.Corrupt, "lies in the whiteout %s", c)
		}
		name := c[len(whiteout.Prefix):]
		if name == "" || name == "." || name == ".." {
			return malformed, nil, errs.New(errs.Corrupt, "a whiteout of %q", name)
		}
		return deletion, append(path[:i:i], name), nil
	}
	return ordinary, path, nil
}
