package parity

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/layerfs/layerfs/tests/harness"
)

// excuses are the answers that may differ, each with the reason. Names that
// begin with .wh. are no part of the histories: there layerfs answers ENOENT or
// EPERM, and overlay knows nothing of them.
var excuses = []struct {
	op     string // what its text begins with
	match  func(got, want string) bool
	reason string
}{
	{"removexattr(", exactly("ok ", "ENODATA"), "overlay looks first whether a lower file has the ACL; a plain file system says nothing"},
	{"fsetxattr(", exactly("ok ", "EEXIST"), "overlay cannot copy up one of several hard links that was deleted while open"},
	{"fchmod(", exactly("ok ", "EEXIST"), "the same"},
	{"fchmod(", exactly("ENOENT", "ENOTDIR"), "a removed directory of a lower: neither can copy it up any more"},
	{"fsetxattr(", exactly("ENOENT", "ENOTDIR"), "the same"},
	{"fstat(", instead("nlink=0", "nlink=1"), "a deleted lower file that is open: overlay shows what the lower says (ovl_getattr)"},
	{"fstat(", directoryTime, "see excusedTime"},
	{"lstat(", directoryTime, "see excusedTime"},
}

// plainExcuses are those where the judge is a plain directory.
var plainExcuses = []string{"fchmod(", "fsetxattr("}

// excusedPlain: a directory of a lower that was removed while open cannot be copied up
// any more, so that its attributes stay what they are. Nobody can see it but who has it open.
func excusedPlain(text, got, want string) bool {
	return got == "ENOENT" && want == "ok " && slices.ContainsFunc(plainExcuses, func(op string) bool { return strings.HasPrefix(text, op) })
}

func exactly(g, w string) func(got, want string) bool {
	return func(got, want string) bool { return got == g && want == w }
}

func instead(g, w string) func(got, want string) bool {
	return func(got, want string) bool { return strings.Contains(got, g) && strings.Replace(got, g, w, 1) == want }
}

var mtime = regexp.MustCompile(` mtime=\d+`)

func directoryTime(got, want string) bool {
	return strings.Contains(got, " 04") && mtime.ReplaceAllString(got, "") == mtime.ReplaceAllString(want, "")
}

// excused reports whether the answers to an operation may differ.
func (h *history) excused(text, got, want string) bool {
	if h.ref.plain {
		return excusedPlain(text, got, want)
	}
	if strings.HasPrefix(text, "lstat(") && h.noLinks(got, want) {
		return true
	}
	for _, e := range excuses {
		if strings.HasPrefix(text, e.op) && e.match(got, want) {
			return true
		}
	}
	return false
}

// excusedLine reports whether two lines of a dump, which belong to the path
// rel, may differ.
func (h *history) excusedLine(rel, got, want string) bool {
	return !h.ref.plain && h.noLinks(got, want) || h.excusedTime(rel, got, want)
}

// noLinks reports whether two answers about a name are the same but for overlay's showing no
// links for something that is there. It soon says ESTALE of it, and the history ends.
func (h *history) noLinks(got, want string) bool {
	if !strings.Contains(want, " nlink=0 ") || links.ReplaceAllString(got, "") != links.ReplaceAllString(want, "") {
		return false
	}
	h.lost = true
	return true
}

// excusedTime reports whether two lines are the same but for the time of a
// directory, and if so makes them the same. A rename that fails in the end (ENOTEMPTY) has made overlay copy up what
// was to be renamed, and it leaves a new time on the directory in which it did.
func (h *history) excusedTime(rel, got, want string) bool {
	if h.ref.plain || !strings.HasPrefix(got, rel+" ") || !directoryTime(got, want) {
		return false
	}
	now := time.Now()
	return harness.SetTime(h.self.at(rel), now) == nil && harness.SetTime(h.ref.at(rel), now) == nil
}

var links = regexp.MustCompile(` nlink=\d+`)

// uncounted leaves out how many links a file has. A lower file counts names
// that the branches above hide, in every union; a plain copy does not have them.
func uncounted(s string) string { return links.ReplaceAllString(s, "") }
