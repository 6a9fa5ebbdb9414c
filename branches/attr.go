package branches

import (
	"slices"
	"strings"
)

// OnOpen is what the opening of a file in a branch does.
type OnOpen uint8

const (
	StayOnOpen    OnOpen = iota
	CopyFiles            // coo_reg: regular files are copied up
	CopyFilesDirs        // coo_all: directories too
	MoveFiles            // moo: regular files are copied up and removed
)

// Attr is what the attributes after a branch's mode amount to (aufs(5), Branch Syntax).
type Attr struct {
	Words     []string // as given
	OnOpen    OnOpen
	LoneMarks bool     // nolwh: whiteouts are no hard links of each other
	NoXattr   []string // icex…: prefixes of the attributes that copying to the branch may fail for
	anyXattr  bool     // icexoth, icex: those of no known class too
}

// xattrClasses are the prefixes that the icex attributes stand for.
var xattrClasses = map[string]string{
	"icexsec": "security.", "icexsys": "system.", "icextr": "trusted.", "icexusr": "user.",
}

// parseAttr settles attributes. "Users can specify all these attributes for a
// single writable branch, but only the last specified one has its effect"
// (of coo_reg, coo_all and moo).
func parseAttr(words []string) Attr {
	a := Attr{Words: words, LoneMarks: slices.Contains(words, "nolwh")}
	for _, w := range words {
		switch w {
		case "coo_reg":
			a.OnOpen = CopyFiles
		case "coo_all":
			a.OnOpen = CopyFilesDirs
		case "moo":
			a.OnOpen = MoveFiles
		case "icex":
			a.anyXattr = true
			for _, prefix := range xattrClasses {
				a.NoXattr = append(a.NoXattr, prefix)
			}
		case "icexoth":
			a.anyXattr = true
		default:
			if prefix, ok := xattrClasses[w]; ok {
				a.NoXattr = append(a.NoXattr, prefix)
			}
		}
	}
	return a
}

// MayLack reports whether a copy in the branch may go without the extended
// attribute when it cannot be set.
func (a *Attr) MayLack(attr string) bool {
	for _, prefix := range a.NoXattr {
		if strings.HasPrefix(attr, prefix) {
			return true
		}
	}
	if !a.anyXattr {
		return false
	}
	for _, prefix := range xattrClasses {
		if strings.HasPrefix(attr, prefix) {
			return false
		}
	}
	return true
}

// Perm is the mode with its attributes, as AUFS's sysfs has it: "ro+wh".
func (b *Branch) Perm() string {
	return strings.Join(append([]string{b.Mode.String()}, b.Attr.Words...), "+")
}
