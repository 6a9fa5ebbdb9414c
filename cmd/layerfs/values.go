package main

import (
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/layerfs/layerfs/fs"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
)

func badValue(format string, args ...any) error { return errs.New(errs.Usage, format, args...) }

func setPath(to *string, value string) error {
	if value == "" {
		return badValue("a directory is missing")
	}
	*to = unescape(value)
	return nil
}

// setName sets a name that ends up in mountinfo.
func setName(to *string, value string) error {
	if value == "" {
		return badValue("a name is missing")
	}
	*to = unescape(value)
	return nil
}

func setLower(s *settings, value string) error {
	s.lower = nil
	for _, dir := range splitPaths(value) {
		s.lower = append(s.lower, unescape(dir))
	}
	if s.lower == nil {
		return badValue("no directory given")
	}
	return nil
}

func setBranches(s *settings, value string) (err error) {
	s.br, err = parseBranches(value)
	return err
}

func setWhiteout(s *settings, value string) error {
	if !contains([]string{"auto", "aufs", "overlay", "xattr"}, value) {
		return badValue("use auto, aufs, overlay or xattr")
	}
	s.whiteout = value
	return nil
}

func setBackend(s *settings, value string) error {
	if !contains([]string{"auto", "fuse", "overlay"}, value) {
		return badValue("use auto, fuse or overlay")
	}
	s.backend = value
	return nil
}

// switchOf is an option of kernel overlay: NAME=on|off, or the name alone.
func switchOf(set func(s *settings, on bool)) func(*settings, string) error {
	return func(s *settings, value string) error {
		set(s, value == "on" || value == "")
		return nil
	}
}

func setUDBA(s *settings, value string) error {
	switch value {
	case "none", "reval", "notify":
		s.udba = value
		return nil
	case "fsnotify", "inotify": // AUFS's other names for it
		s.udba = "notify"
		return nil
	}
	return badValue("use none, reval or notify")
}

func setCreate(s *settings, value string) error {
	if err := s.policy.SetCreate(value); err != nil {
		return badValue("%w", err)
	}
	return nil
}

func setCopyUp(s *settings, value string) error {
	if err := s.policy.SetCopyUp(value); err != nil {
		return badValue("%w", err)
	}
	return nil
}

func setOpaque(s *settings, value string) error {
	switch value {
	case "always", "a":
		s.fs.AlwaysOpaque = true
	case "whiteouted", "w":
		s.fs.AlwaysOpaque = false
	default:
		return badValue("use always or whiteouted")
	}
	return nil
}

// setRedirect also takes the values of kernel overlay: what was redirected
// is always followed, the question is only whether to redirect.
func setRedirect(s *settings, value string) error {
	s.redirect = value == "on"
	switch value {
	case "on":
		s.fs.RedirectDir = true
	case "off", "follow", "nofollow":
		s.fs.RedirectDir = false
	default:
		return badValue("use on or off")
	}
	return nil
}

func setSync(s *settings, value string) error {
	s.volatile = false
	switch value {
	case "auto", "1":
		s.fs.Sync = fs.SyncAuto
	case "strict":
		s.fs.Sync = fs.SyncStrict
	case "volatile", "0":
		s.volatile = true
	default:
		return badValue("use auto, strict or volatile")
	}
	return nil
}

func setTimeout(s *settings, value string) error {
	sec, err := strconv.ParseFloat(value, 64)
	if err != nil || math.IsNaN(sec) || sec < 0 {
		return badValue("a number of seconds is needed")
	}
	d := forever
	if sec < forever.Seconds() {
		d = time.Duration(sec * float64(time.Second))
	}
	s.timeout = &d
	return nil
}

// boolean is an option that is on when it is named, or NAME=0|1.
func boolean(set func(s *settings, on bool)) func(*settings, string) error {
	return func(s *settings, value string) error {
		switch value {
		case "", "1", "true", "on", "yes":
			set(s, true)
		case "0", "false", "off", "no":
			set(s, false)
		default:
			return badValue("use 0 or 1")
		}
		return nil
	}
}

func setID(to **uint32, value string) error {
	id, err := parseID(value)
	if err != nil {
		return err
	}
	*to = &id
	return nil
}

func parseID(value string) (uint32, error) {
	id, err := strconv.ParseUint(value, 10, 32)
	if err != nil || id == math.MaxUint32 { // -1 means "no id"
		return 0, badValue("%q is no id", value)
	}
	return uint32(id), nil
}

// setMapping reads OUTER:INNER:LEN triples: ids in the layers (those of the
// container), ids that the mount shows for them. containers-storage puts a colon
// before the first, and the manual of fuse-overlayfs commas between them.
func setMapping(to *[]fs.IDMap, value string) error {
	fields := strings.FieldsFunc(value, func(r rune) bool { return r == ':' || r == ',' })
	if len(fields) == 0 || len(fields)%3 != 0 {
		return badValue("a mapping is BRANCH-ID:SHOWN-ID:LENGTH[:…]")
	}
	*to = nil
	for ; len(fields) > 0; fields = fields[3:] {
		m, err := parseTriple(fields[:3])
		if err != nil {
			return err
		}
		*to = append(*to, m)
	}
	return nil
}

func parseTriple(fields []string) (fs.IDMap, error) {
	var n [3]uint64
	for i, f := range fields {
		v, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return fs.IDMap{}, badValue("%q is no id", f)
		}
		n[i] = v
	}
	if n[2] == 0 || n[0]+n[2] > 1<<32 || n[1]+n[2] > 1<<32 {
		return fs.IDMap{}, badValue("%s is not a range of ids", strings.Join(fields, ":"))
	}
	return fs.IDMap{Outer: uint32(n[0]), Inner: uint32(n[1]), Len: uint32(n[2])}, nil
}

func setXattrPermissions(s *settings, value string) error {
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 || n > 2 {
		return badValue("use 0, 1 or 2")
	}
	s.fs.XattrPermissions = n
	return nil
}

// selinux says whether the kernel understands security contexts; it refuses
// a mount with one otherwise.
var selinux = func() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}

// setContext passes a context on to the kernel, quoted again, because its
// categories are separated by commas.
func setContext(name string) func(*settings, string) error {
	return func(s *settings, value string) error {
		if !selinux() {
			return errs.New(errs.Unsupported, "needs SELinux, which this kernel does not have")
		}
		s.extra = append(s.extra, name+`="`+strings.Trim(value, `"`)+`"`)
		return nil
	}
}

// setPassthrough is refused where the kernel would refuse each file.
func setPassthrough(s *settings, _ string) error {
	if os.Geteuid() != 0 || sys.InUserNamespace() {
		return errs.New(errs.Unsupported, "needs root outside any user namespace")
	}
	s.fs.Passthrough = true
	return nil
}
