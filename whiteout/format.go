package whiteout

import (
	"fmt"
	"strings"
)

// Dialect is a way of recording whiteouts.
type Dialect uint8

const (
	Overlay Dialect = iota // character devices 0:0, as kernel overlayfs
	AUFS                   // .wh. files
	Xattr                  // empty files with an xattr, as overlayfs reads them in lowers
)

var dialectNames = [...]string{"overlay", "aufs", "xattr"}

func (d Dialect) String() string { return dialectNames[d] }

// ParseDialect returns the dialect called name.
func ParseDialect(name string) (Dialect, error) {
	for i, n := range dialectNames {
		if n == name {
			return Dialect(i), nil
		}
	}
	return 0, fmt.Errorf("whiteout dialect %q is not known: aufs, overlay or xattr", name)
}

// Namespace is where the extended attributes of a format live.
type Namespace string

const (
	Trusted Namespace = "trusted."
	User    Namespace = "user."
)

// Format is what is written in one upper.
type Format struct {
	Dialect Dialect
	NS      Namespace
}

// String is the recorded form of a format, as in "overlay trusted". Part of
// the on-disk format.
func (f Format) String() string {
	return f.Dialect.String() + " " + strings.TrimSuffix(string(f.NS), ".")
}

// Converting is what the dialect of a format record begins with while an upper
// is being converted. Part of the on-disk format.
const Converting = "converting-to-"

// ParseFormat is the inverse of String.
func ParseFormat(s string) (Format, error) {
	name, ns, _ := strings.Cut(s, " ")
	if to, ok := strings.CutPrefix(name, Converting); ok {
		return Format{}, fmt.Errorf("a conversion was interrupted (%q): complete it with `layerfs convert --to %s`", s, to)
	}
	d, err := ParseDialect(name)
	if err != nil {
		return Format{}, err
	}
	switch ns {
	case "trusted":
		return Format{d, Trusted}, nil
	case "user":
		return Format{d, User}, nil
	}
	return Format{}, fmt.Errorf("xattr namespace %q in format record %q is not known: trusted or user", ns, s)
}

// MaxName is the longest file name in bytes that can be made in an upper of
// this format whose file system takes names of fsMax bytes.
func (f Format) MaxName(fsMax int) int {
	if f.Dialect == AUFS {
		return fsMax - len(Prefix)
	}
	return fsMax
}
