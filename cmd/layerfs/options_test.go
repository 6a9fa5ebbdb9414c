package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/fs"
	"github.com/layerfs/layerfs/internal/errs"
)

func TestSplitOptions(t *testing.T) {
	for in, want := range map[string][]string{
		"":                           nil,
		",,":                         nil,
		"a,,b,":                      {"a", "b"},
		`lowerdir=/a\,b,c`:           {"lowerdir=/a,b", "c"},
		`lowerdir=/a\:b:/c`:          {`lowerdir=/a\:b:/c`},
		`lowerdir=/a\\,c`:            {`lowerdir=/a\\`, "c"},
		`context="u:r:t:s0:c1,c2",x`: {`context="u:r:t:s0:c1,c2"`, "x"},
		`context="open,x`:            {`context="open`, "x"},
		`upperdir="q,x`:              {`upperdir="q`, "x"},
		`a\`:                         {`a\`},
	} {
		if got := splitOptions(in); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestSplitPaths(t *testing.T) {
	for in, want := range map[string][]string{
		"a::b:":     {"a", "b"},
		":a":        {"a"},
		`a\:b:c`:    {`a\:b`, "c"},
		`a\\:b`:     {`a\\`, "b"},
		`a:\`:       {"a", `\`},
		"":          nil,
		"/x":        {"/x"},
		"::":        nil,
		`/a b:/c=d`: {"/a b", "/c=d"},
	} {
		if got := splitPaths(in); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func id(n uint32) *uint32 { return &n }

func TestParseOptions(t *testing.T) {
	const base = "lowerdir=/l,"
	for opts, check := range map[string]func(s *settings) bool{
		`lowerdir=/a\:b:/c::/d\\e`: func(s *settings) bool { return slices.Equal(s.lower, []string{"/a:b", "/c", `/d\e`}) },
		`lowerdir=l,upperdir=u\,v,workdir=w,,volatile`: func(s *settings) bool {
			c := s.stack("/m")
			return s.upper == "u,v" && c.WorkDir == "w" && c.Branches[0].Mode == branches.RW && s.fileSystem().Sync == fs.SyncVolatile && c.Volatile == s.strict
		},
		base + "ro":               func(s *settings) bool { return s.fileSystem().ReadOnly && s.stack("").ReadOnly },
		base + "ro,rw":            func(s *settings) bool { return !s.fileSystem().ReadOnly },
		base + "nosuid,nodev,dev": func(s *settings) bool { return s.flags == unix.MS_NOSUID && s.cleared == unix.MS_NODEV },
		base + "uidmapping=:0:1:1901:1901:0:1": func(s *settings) bool {
			return reflect.DeepEqual(s.fs.UIDMap, []fs.IDMap{{Outer: 0, Inner: 1, Len: 1901}, {Outer: 1901, Inner: 0, Len: 1}})
		},
		base + `gidmapping=0:10:100\,100:1000:50`: func(s *settings) bool { return len(s.fs.GIDMap) == 2 && s.fs.GIDMap[1].Inner == 1000 },
		base + "squash_to_uid=7,squash_to_gid=8":  func(s *settings) bool { return *s.fs.SquashUID == 7 && *s.fs.SquashGID == 8 },
		base + "squash_to_root,static_nlink":      func(s *settings) bool { return s.fs.SquashToRoot && s.fs.StaticNlink },
		base + "noacl,noxattrs=0,ino32_t":         func(s *settings) bool { return s.fs.NoACL && !s.fs.NoXattrs && s.fs.Ino32 },
		base + "xattr_permissions=2":              func(s *settings) bool { return s.fs.XattrPermissions == 2 },
		base + "redirect_dir=off":                 func(s *settings) bool { return !s.fs.RedirectDir },
		base + "fsync=0":                          func(s *settings) bool { return s.fileSystem().Sync == fs.SyncVolatile },
		base + "volatile,fsync=strict":            func(s *settings) bool { return s.fileSystem().Sync == fs.SyncStrict },
		base + "timeout=1.5":                      func(s *settings) bool { return s.fileSystem().Timeout == 1500*time.Millisecond },
		base + "timeout=1e300":                    func(s *settings) bool { return s.fileSystem().Timeout == forever },
		base + "timeout=0":                        func(s *settings) bool { return s.fileSystem().Timeout == 0 },
		base + "udba=reval":                       func(s *settings) bool { return s.fileSystem().Timeout == time.Second },
		base:                                      func(s *settings) bool { return s.fileSystem().Timeout == forever && s.fs.RedirectDir },
		base + `context="u:r:t:s0:c1,c2"`:         func(s *settings) bool { return slices.Equal(s.extra, []string{`context="u:r:t:s0:c1,c2"`}) },
		base + "fsync=1,xino=auto,private,nofail,user,_netdev,x-systemd.automount,writeback=0,threaded=1,fast_ino=1,plugins=,index=off,metacopy=on,allow_root,max_write=131072,fsname=x": func(s *settings) bool {
			return s.fsName == "x"
		},
		"br=/u=rw+nolwh:/l=ro+wh:/k": func(s *settings) bool {
			c := s.stack("")
			return c.AufsStyle && reflect.DeepEqual(c.Branches, []branches.Spec{
				{Path: "/u", Mode: branches.RW, Attr: []string{"nolwh"}},
				{Path: "/l", Mode: branches.RO, Attr: []string{"wh"}},
				{Path: "/k", Mode: branches.RO, Auto: true},
			})
		},
		`dirs=/a=b/c:/d\:e=rr`: func(s *settings) bool {
			return s.br[0].Path == "/a=b/c" && s.br[0].Mode == branches.RW && s.br[1].Path == "/d:e" && s.br[1].Mode == branches.RR
		},
		"br:/a:/b": func(s *settings) bool { return len(s.br) == 2 },
	} {
		defer func(old func() bool) { selinux = old }(selinux)
		selinux = func() bool { return true }
		for _, strict := range []bool{true, false} {
			s, err := parseOptions(strict, []string{opts})
			if err != nil {
				t.Errorf("%s: %v", opts, err)
			} else if !check(s) {
				t.Errorf("%s: got %+v", opts, s)
			}
		}
	}
}

func TestRefusedOptions(t *testing.T) {
	for opts, class := range map[string]errs.Class{
		"":                                      errs.Usage,
		"lowerdir=":                             errs.Usage,
		"lowerdir=::":                           errs.Usage,
		"lowerdir":                              errs.Usage,
		"lowerdir=l,upperdir=u":                 errs.Usage,
		"br=/u,lowerdir=/l":                     errs.Usage,
		"br=/u=rx":                              errs.Usage,
		"br=/u=rw+nonsense":                     errs.Usage,
		"lowerdir=l,uidmapping=0:1":             errs.Usage,
		"lowerdir=l,uidmapping=a:1:1":           errs.Usage,
		"lowerdir=l,uidmapping=0:1:0":           errs.Usage,
		"lowerdir=l,gidmapping=1:1:42949672950": errs.Usage,
		"lowerdir=l,squash_to_uid=-1":           errs.Usage,
		"lowerdir=l,timeout=soon":               errs.Usage,
		"lowerdir=l,fsync=maybe":                errs.Usage,
		"lowerdir=l,xattr_permissions=3":        errs.Usage,
		"lowerdir=l,whiteout=pink":              errs.Usage,
		"lowerdir=l,copyup=some":                errs.Usage,
		"lowerdir=l,copyup_threshold=0":         errs.Usage,
		"lowerdir=l,settle=never":               errs.Usage,
		"lowerdir=l,backend=aufs":               errs.Usage,
	} {
		for _, strict := range []bool{true, false} {
			if _, err := parseOptions(strict, []string{opts}); errs.Of(err) != class || err == nil {
				t.Errorf("%q: got %v", opts, err)
			}
		}
	}
	for opts, class := range map[string]errs.Class{
		"lowerdir=l,lowedir=x": errs.Usage,
	} {
		if _, err := parseOptions(true, []string{opts}); err == nil || errs.Of(err) != class {
			t.Errorf("%q, strict: got %v", opts, err)
		}
		if _, err := parseOptions(false, []string{opts}); err != nil {
			t.Errorf("%q, drop-in: got %v", opts, err)
		}
	}
}

func TestNearest(t *testing.T) {
	for in, want := range map[string]string{
		"lowedir": "lowerdir", "uperdir": "upperdir", "wrokdir": "workdir", "redirectdir": "redirect_dir",
		"squash_to_roto": "squash_to_root", "qqqqqqqqqqqqq": "",
	} {
		if got := nearest(in, optionNames()); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
	if _, err := parseOptions(true, []string{"lowerdir=l,lowedir=x"}); !strings.Contains(err.Error(), `"lowedir" (did you mean lowerdir?)`) {
		t.Error(err)
	}
}

func TestParseLoose(t *testing.T) {
	for args, want := range map[string]looseArgs{
		"-o a m":               {options: []string{"a"}, operands: []string{"m"}},
		"none m -oa -o b -f":   {options: []string{"a", "b"}, operands: []string{"none", "m"}, flags: []string{"-f"}},
		"m -fd --what":         {operands: []string{"m"}, flags: []string{"-f", "-d", "--what"}},
		"src m -t fuse.x -n":   {operands: []string{"src", "m"}, flags: []string{"-n"}},
		"-- -o m":              {operands: []string{"-o", "m"}},
		"-x m --debug --zebra": {operands: []string{"m"}, flags: []string{"-x", "--debug", "--zebra"}},
	} {
		if got := *parseLoose(strings.Fields(args)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", args, got, want)
		}
	}
}

func TestDispatch(t *testing.T) {
	for args, want := range map[string]int{
		"layerfs settle /none": 3, "layerfs diff /none": 3, "layerfs pool": 2, "layerfs thin zap": 2, "layerfs mount": 2, "layerfs status": 2, "layerfs umount /none": 3,
		"layerfs mount -o nonsense=1 m": 2, "layerfs -o lowerdir=l": 1, "layerfs m": 1, "mount.layerfs none": 1,
		"layerfs status --json /": 3, "fuse-overlayfs diff": 1, "layerfs changes": 2,
	} {
		if got, err := dispatch(strings.Fields(args)); got != want {
			t.Errorf("%s: got %d (%v), want %d", args, got, err, want)
		}
	}
}

func TestInMount(t *testing.T) {
	for path, want := range map[string]string{"/m/a/b": "a/b", "/m": "", "a/b": "a/b", "/mother": "/mother", "/etc": "/etc"} {
		if got := inMount("/m", path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
}

// Only what kernel overlay has too, or does not need, leaves the choice.
func TestOnlyFUSE(t *testing.T) {
	for opts, want := range map[string]string{
		"lowerdir=l,upperdir=u,workdir=w,userxattr,index=on,ro,noatime,lazytime,xino=auto,x-y": "",
		"lowerdir=l,fsync=0,copyup=full,whiteout=overlay,redirect_dir=off,udba=none":           "",
		"lowerdir=l,fsync=strict":   "fsync=strict",
		"lowerdir=l,whiteout=xattr": "whiteout=xattr",
		"lowerdir=l,timeout=1":      "timeout=1",
		"lowerdir=l,sync":           "sync",
		"lowerdir=l,noacl":          "noacl",
	} {
		s, err := parseOptions(true, []string{opts})
		if err != nil {
			t.Fatalf("%q: %v", opts, err)
		}
		if got := strings.Join(s.only, " "); got != want {
			t.Errorf("%q: only FUSE has %q, not %q", opts, got, want)
		}
	}
}
