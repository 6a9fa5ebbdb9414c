package mounts

import (
	"slices"
	"strings"
)

// Overlay is what the table says of an overlay.
type Overlay struct {
	Lowers      []string // top first
	Upper, Work string   // "" when it is read-only
	Options     []string // all others, "userxattr" and the like
}

// Overlay reads the options of an overlay; ok is false when m is none.
//
// A list of lowers (lowerdir=) is shown as it was given, with a backslash
// before each comma or colon of a name. Those given one by one (lowerdir+=)
// are shown as they are.
func (m Mount) Overlay() (o Overlay, ok bool) {
	if m.Type != "overlay" {
		return o, false
	}
	for _, option := range split(m.Options, ',') {
		key, value, _ := strings.Cut(option, "=")
		value = unescape(value)
		switch key {
		case "lowerdir":
			for _, d := range split(value, ':') {
				if d != "" { // between the colons before a data-only lower
					o.Lowers = append(o.Lowers, plain(d))
				}
			}
		case "lowerdir+", "datadir+":
			o.Lowers = append(o.Lowers, value)
		case "upperdir":
			o.Upper = value
		case "workdir":
			o.Work = value
		case "rw", "ro":
		default:
			o.Options = append(o.Options, option)
		}
	}
	return o, true
}

// Uses reports whether dir, absolute, is one of the directories of the overlay.
func (o Overlay) Uses(dir string) bool {
	for _, d := range append([]string{o.Upper, o.Work}, o.Lowers...) {
		if d == dir || plain(d) == dir {
			return true
		}
	}
	return false
}

// split splits s at sep, except after a backslash.
func split(s string, sep byte) []string {
	var out []string
	start := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case sep:
			out, start = append(out, s[start:i]), i+1
		}
	}
	return append(out, s[start:])
}

// plain removes the backslashes that a list needs.
func plain(s string) string {
	return strings.NewReplacer(`\\`, `\`, `\,`, ",", `\:`, ":").Replace(s)
}

// OverlayWriting returns where an overlay of this mount namespace is mounted
// that writes to one of the absolute directories dirs, "" for nowhere.
func OverlayWriting(dirs ...string) string {
	table, err := Table()
	if err != nil {
		return ""
	}
	for _, m := range table {
		o, ok := m.Overlay()
		if ok && (slices.Contains(dirs, o.Upper) || slices.Contains(dirs, o.Work)) {
			return m.Point
		}
	}
	return ""
}
