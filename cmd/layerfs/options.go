package main

import (
	"maps"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// argument says whether an option has a value.
type argument uint8

const (
	optional argument = iota
	none
	required
)

// option is one entry of the table: what it takes and what it does.
type option struct {
	arg   argument
	apply func(s *settings, value string) error
}

// ignored means nothing here but is passed by tools that pass it to every
// file system, or is about something that fuse-overlayfs has and layerfs
// does by itself.
func ignored(*settings, string) error { return nil }

func flag(bits uintptr) option {
	return option{none, func(s *settings, _ string) error {
		s.flags |= bits
		s.cleared &^= bits
		return nil
	}}
}

func noFlag(bits uintptr) option {
	return option{none, func(s *settings, _ string) error {
		s.flags &^= bits
		s.cleared |= bits
		return nil
	}}
}

// onlyDefault accepts the values that say what happens anyway; the others
// are for a later version.
func onlyDefault(needs string, values ...string) func(*settings, string) error {
	return func(_ *settings, value string) error {
		if contains(values, value) {
			return nil
		}
		return errs.New(errs.Unsupported, "needs %s, which is not in this version", needs)
	}
}

// flagOptions are the options that the kernel keeps for any file system.
var flagOptions = map[string]option{
	"ro": flag(unix.MS_RDONLY), "rw": noFlag(unix.MS_RDONLY),
	"nosuid": flag(unix.MS_NOSUID), "suid": noFlag(unix.MS_NOSUID),
	"nodev": flag(unix.MS_NODEV), "dev": noFlag(unix.MS_NODEV),
	"noexec": flag(unix.MS_NOEXEC), "exec": noFlag(unix.MS_NOEXEC),
	"noatime": flag(unix.MS_NOATIME), "atime": noFlag(unix.MS_NOATIME),
	"nodiratime": flag(unix.MS_NODIRATIME), "diratime": noFlag(unix.MS_NODIRATIME),
	"relatime": flag(unix.MS_RELATIME), "norelatime": noFlag(unix.MS_RELATIME),
	"strictatime": flag(unix.MS_STRICTATIME), "nostrictatime": noFlag(unix.MS_STRICTATIME),
	"sync": flag(unix.MS_SYNCHRONOUS), "async": noFlag(unix.MS_SYNCHRONOUS),
	"dirsync": flag(unix.MS_DIRSYNC),
}

// ignoredOptions mean nothing here.
var ignoredOptions = []string{
	// What other tools pass to every file system.
	"lazytime", "nolazytime", "nofail", "user", "nouser", "users", "nousers", "owner", "noowner", "group",
	"nogroup", "auto", "noauto", "_netdev", "defaults", "comment", "silent", "loud", "mand", "nomand",
	"private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable",
	// What fuse-overlayfs and libfuse have and layerfs decides itself.
	// allow_root is among them: the kernel does not know it, and to
	// take it for allow_other would open the mount to everybody.
	"default_permissions", "allow_root", "auto_unmount", "nonempty", "max_read", "max_write", "max_background",
	"threaded", "fast_ino", "writeback", "plugins", "splice_read", "splice_write", "splice_move",
	"kernel_cache", "auto_cache", "noauto_cache", "big_writes", "use_ino", "readdir_ino", "debug",
	// What kernel overlay has and layerfs does not need.
	"xino", "noxino", "nfs_export", "uuid",
	// What AUFS has and layerfs does not need.
	"dio", "nodio", "verbose", "noverbose", "v", "q", "quiet", "dirwh", "rdcache", "rdblk", "rdhash",
	"trunc_xino", "notrunc_xino", "itrunc_xino", "trunc_xib", "notrunc_xib", "clean_plink",
	"warn_perm", "nowarn_perm", "dirren", "nodirren", "acl",
}

// optionTable is every option by name. Filled by init: its entries refer to
// functions that refer to it.
var optionTable map[string]option

func init() {
	optionTable = map[string]option{
		"lowerdir": {required, setLower},
		"upperdir": {required, func(s *settings, v string) error { return setPath(&s.upper, v) }},
		"workdir":  {required, func(s *settings, v string) error { return setPath(&s.work, v) }},
		"br":       {required, setBranches},
		"dirs":     {required, setBranches},

		"whiteout":         {required, setWhiteout},
		"userxattr":        {none, func(s *settings, _ string) error { s.userXattr = true; return nil }},
		"backend":          {required, setBackend},
		"index":            {optional, switchOf(func(s *settings, on bool) { s.index = on })},
		"metacopy":         {optional, switchOf(func(s *settings, on bool) { s.metacopy = on })},
		"copyup":           {required, setCopyUpMode},
		"copyup_threshold": {required, setThreshold},
		"pool":             {required, func(s *settings, v string) error { return setPath(&s.pool, v) }},
		"settle":           {required, setSettle},
		"create":           {required, setCreate},
		"create_policy":    {required, setCreate},
		"cpup":             {required, setCopyUp},
		"copyup_policy":    {required, setCopyUp},
		"udba":             {required, setUDBA},
		"diropq":           {required, setOpaque},
		"sum":              {none, func(s *settings, _ string) error { s.fs.SumSpace = true; return nil }},
		"nosum":            {none, func(s *settings, _ string) error { s.fs.SumSpace = false; return nil }},
		"shwh":             {none, func(s *settings, _ string) error { s.showMarks = true; return nil }},
		"noshwh":           {none, func(s *settings, _ string) error { s.showMarks = false; return nil }},
		"plink":            {none, ignored}, // hard links always survive
		"noplink":          {none, onlyDefault("copy-ups that break hard links")},
		"dirperm1":         {none, ignored}, // the topmost directory alone says who may enter
		"nodirperm1":       {none, onlyDefault("permissions of lower directories")},

		"passthrough": {none, setPassthrough},

		"redirect_dir":      {required, setRedirect},
		"fsync":             {required, setSync},
		"volatile":          {none, func(s *settings, _ string) error { s.volatile = true; return nil }},
		"timeout":           {required, setTimeout},
		"squash_to_root":    {optional, boolean(func(s *settings, on bool) { s.fs.SquashToRoot = on })},
		"squash_to_uid":     {required, func(s *settings, v string) error { return setID(&s.fs.SquashUID, v) }},
		"squash_to_gid":     {required, func(s *settings, v string) error { return setID(&s.fs.SquashGID, v) }},
		"uidmapping":        {required, func(s *settings, v string) error { return setMapping(&s.fs.UIDMap, v) }},
		"gidmapping":        {required, func(s *settings, v string) error { return setMapping(&s.fs.GIDMap, v) }},
		"xattr_permissions": {required, setXattrPermissions},
		"static_nlink":      {optional, boolean(func(s *settings, on bool) { s.fs.StaticNlink = on })},
		"noxattrs":          {optional, boolean(func(s *settings, on bool) { s.fs.NoXattrs = on })},
		"noacl":             {optional, boolean(func(s *settings, on bool) { s.fs.NoACL = on })},
		"ino32_t":           {optional, boolean(func(s *settings, on bool) { s.fs.Ino32 = on })},

		"allow_other": {none, func(s *settings, _ string) error { s.allowOther = true; return nil }},
		"fsname":      {required, func(s *settings, v string) error { return setName(&s.fsName, v) }},
		"subtype":     {required, func(s *settings, v string) error { return setName(&s.subtype, v) }},
	}
	maps.Copy(optionTable, flagOptions)
	for _, name := range []string{"context", "fscontext", "defcontext", "rootcontext"} {
		optionTable[name] = option{required, setContext(name)}
	}
	for _, name := range ignoredOptions {
		optionTable[name] = option{optional, ignored}
	}
}

// apply carries out one option of an option string.
func (s *settings) apply(token string) error {
	name, value, hasValue := strings.Cut(token, "=")
	if rest, ok := strings.CutPrefix(token, "br:"); ok { // AUFS's other spelling
		name, value, hasValue = "br", rest, true
	}
	opt, known := optionTable[name]
	switch {
	case !known && (strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-")):
		return nil
	case !known:
		return s.unknown(name)
	case opt.arg == required && !hasValue:
		return errs.New(errs.Usage, "option %s needs a value: %s=…", name, name)
	case opt.arg == none && hasValue:
		return errs.New(errs.Usage, "option %s takes no value, but got %q", name, value)
	}
	err := opt.apply(s, value)
	if err == nil {
		s.noteOnly(name, token)
		return nil
	}
	if errs.Of(err) == errs.Unsupported && !s.strict {
		warn("option %s is ignored: %v", token, err)
		return nil
	}
	return errs.New(errs.Of(err), "option %s: %w", token, err)
}

func (s *settings) unknown(name string) error {
	hint := ""
	if near := nearest(name, optionNames()); near != "" {
		hint = " (did you mean " + near + "?)"
	}
	if s.strict {
		return errs.New(errs.Usage, "unknown option %q%s", name, hint)
	}
	warn("unknown option %q is ignored%s", name, hint)
	return nil
}

func optionNames() []string {
	names := make([]string, 0, len(optionTable))
	for name := range optionTable {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// parseOptions reads the option strings of one mount.
func parseOptions(strict bool, strs []string) (*settings, error) {
	s := newSettings(strict)
	for _, str := range strs {
		for _, token := range splitOptions(str) {
			if err := s.apply(token); err != nil {
				return nil, err
			}
		}
	}
	return s, s.check()
}
