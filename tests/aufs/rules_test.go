package aufs

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/tests/harness"
)

// rule is one statement of aufs(5) and what it means for the branches a, b, c
// and d, directories of the test. The scripts run there, with set -e; has, lacks
// and in are shell functions, see prelude.
type rule struct {
	says  string // of the manual
	setup string // before the mount
	br    string // of br=
	opts  string // more options
	do    string // with the mount on m
	after string // after the unmount
	root  bool
}

// prelude: `has a/f` and `lacks a/f` say what must be; `count N DIR` how many names
// a directory has, the union's own left out; `fails CMD` that it must not succeed.
const prelude = `
has() { for f; do [ -e "$f" ] || [ -L "$f" ] || { echo "$f is missing"; exit 1; }; done; }
lacks() { for f; do ! [ -e "$f" ] || { echo "$f is there"; exit 1; }; done; }
count() { n=$(ls -A "$2" | grep -vc '^\.wh\.\.wh\.' || true); [ "$n" = "$1" ] || { echo "$2 has $n names, not $1"; ls -A "$2"; exit 1; }; }
fails() { if "$@" 2>/dev/null; then echo "$* did not fail"; exit 1; fi; }
is() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'"; exit 1; }; }
`

// small and big are file systems of different size.
const (
	smallA = "mount -t tmpfs -o size=4m t a; mount -t tmpfs -o size=64m t b; "
	noTmp  = "umount a b"
	// bigXattr makes a file with more in an attribute than ext4 takes.
	bigXattr = "truncate -s 8M i; mkfs.ext4 -q i; mount -o loop i a; mount -t tmpfs t b; echo x >b/f; setfattr -n user.small -v s b/f; setfattr -n user.big -v $(head -c 20000 /dev/zero | tr '\\0' x) b/f"
)

var rules = map[string][]rule{
	"branch syntax": {
		{says: "rw: Readable and writable branch. Set as default for the first branch. ro: Set as default for all branches except the first one.",
			br: "a:b", do: "layerfs branches m | grep -q '^0 .*/a=rw '; layerfs branches m | grep -q '^1 .*/b=ro '"},
		{says: "ro: Aufs never issue both of write operation and lookup operation for whiteout to this branch.",
			setup: ">b/.wh.f; >c/f", br: "a=rw:b=ro:c=ro", do: "has m/f; count 1 m"},
		{says: "wh: Aufs never issue write operation to this branch, but lookup for whiteout.",
			setup: ">b/.wh.f; >c/f; >c/g", br: "a=rw:b=ro+wh:c=ro", do: "lacks m/f; count 1 m; rm m/g; has a/.wh.g; count 1 b"},
		{says: "rr: Real readonly branch, special case of `ro'.",
			setup: ">b/f", br: "a=rw:b=rr", do: "has m/f; echo x >m/f; has a/f; is \"$(cat b/f)\" ''"},
		{says: "rr: Set by default for a branch whose fs-type is either `iso9660', `cramfs' or `romfs' (and `squashfs').",
			root: true, setup: ">c/f; mksquashfs c sq -quiet -no-progress >/dev/null; mount -o loop,ro sq b", br: "a:b:c",
			do: "layerfs branches m | grep -q '^1 .*/b=rr '; layerfs branches m | grep -q '^2 .*/c=ro '; has m/f", after: "umount b"},
		{says: "Usually, aufs creates a whiteout as a hardlink on a writable branch.",
			setup: ">b/f; >b/g", br: "a=rw:b=ro", do: "rm m/f m/g; is $(stat -c %i a/.wh.f) $(stat -c %i a/.wh.g)"},
		{says: "nolwh: This attributes prohibits aufs to create the hardlinked whiteout.",
			setup: ">b/f; >b/g", br: "a=rw+nolwh:b=ro", do: "rm m/f m/g; is $(stat -c %h a/.wh.f) 1; is $(stat -c %h a/.wh.g) 1"},
		{says: "Users can only see the highest file; a whiteout is never appeared.",
			setup: "echo up >a/f; echo low >b/f; >a/.wh.g; >b/g", br: "a:b", do: "is \"$(cat m/f)\" up; count 1 m; fails sh -c ': >m/.wh.f'; lacks m/.wh.g"},
		{says: "More than one branch can be writable; the topmost need not be.",
			setup: ">a/top; >b/mid", br: "a=ro:b=rw:c=ro", do: "echo x >m/mid; >m/new; fails sh -c 'echo x >m/top'; fails rm -f m/top; has b/new; count 1 a"},
	},
	"on open": {
		{says: "coo_reg handles the regular files only.",
			setup: "mkdir b/d; echo x >b/d/f", br: "a=rw:b=ro+coo_reg", do: "ls m/d >/dev/null; lacks a/d; cat m/d/f >/dev/null; is \"$(cat a/d/f)\" x"},
		{says: "coo_all handles the regular files plus the directories. All special files and symlinks will not be copied-up.",
			setup: "mkdir -p b/d/e; mkfifo b/p; ln -s d b/l", br: "a=rw:b=ro+coo_all", do: "ls m/d/e >/dev/null; has a/d/e; readlink m/l >/dev/null; stat m/p >/dev/null; lacks a/p a/l"},
		{says: "`copy-up on open' always choose the nearest upper writable branch. These attributes are for not only the readonly branches but also the writable branches.",
			setup: "echo x >c/f", br: "a=rw:b=rw:c=rw+coo_reg", opts: "cpup=tdp", do: "cat m/f >/dev/null; has b/f; lacks a/f; has c/f"},
		{says: "Even if there are multiple writable branches set these attributes, the internal copy-up operation is done once, not recursively.",
			setup: "echo x >c/f", br: "a=rw:b=rw+coo_reg:c=rw+coo_reg", do: "cat m/f >/dev/null; has b/f; lacks a/f"},
		{says: "moo unlinks the copy-up source after the successful operation. This attribute handles the regular files only.",
			setup: "echo x >b/f; mkdir b/d", br: "a=rw:b=rw+moo", do: "is \"$(cat m/f)\" x; ls m/d >/dev/null; has a/f; lacks b/f a/d; is \"$(cat m/f)\" x"},
		{says: "only the last specified one has its effect. Other coo/moo attributes are silently ignored.",
			setup: "echo x >b/f", br: "a=rw:b=rw+moo+coo_reg", do: "cat m/f >/dev/null; has a/f b/f"},
		{says: "By default the internal copy-up is executed when it is really necessary. It is not done when a file is opened for writing, but when any writing is done.",
			setup: "echo x >b/f", br: "a=rw:b=ro", do: ": >>m/f; lacks a/f; echo y >>m/f; has a/f"},
	},
	"create policies": {
		{says: "tdp: Select the highest branch where the parent dir exists.",
			setup: "mkdir b/d c/d", br: "a=rw:b=rw:c=rw", do: ">m/d/f; has b/d/f; lacks a/d; >m/g; has a/g"},
		{says: "tdp: If this branch is not writable, internal copyup will happen. The policy for this copyup is always `bottom-up.'",
			setup: "mkdir c/d", br: "a=rw:b=rw:c=ro", do: ">m/d/f; has b/d/f; lacks a/d"},
		{says: "rr: When you have two writable branches and creates 10 new files, 5 files will be created for each branch.",
			br: "a=rw:b=rw", opts: "create=rr", do: "for i in 0 1 2 3 4 5 6 7 8 9; do >m/$i; done; count 5 a; count 5 b; count 10 m"},
		{says: "rr: mkdir(2) systemcall is an exception. When you create 10 new directories, all are created on the same branch.",
			br: "a=rw:b=rw", opts: "create=round-robin", do: "for i in 0 1 2 3 4 5 6 7 8 9; do mkdir m/$i; done; count 10 a; count 0 b"},
		{says: "mfs: Selects a writable branch which has most free space.",
			root: true, setup: smallA, br: "a=rw:b=rw", opts: "create=mfs", do: ">m/f; has b/f; mkdir m/d; has b/d; >m/d/g; has b/d/g", after: noTmp},
		{says: "mfs: aufs hold the index of last selected writable branch until the specified seconds expires.",
			root: true, setup: smallA, br: "a=rw:b=rw", opts: "create=mfs:3600", do: ">m/f; head -c 62m /dev/zero >b/filler; >m/g; has b/f b/g", after: noTmp},
		{says: "mfs: aufs checks the amount of free space of all writable branches.",
			root: true, setup: smallA, br: "a=rw:b=rw", opts: "create=most-free-space:0", do: ">m/f; head -c 62m /dev/zero >b/filler; >m/g; has b/f a/g", after: noTmp},
		{says: "mfsrr: If the selected branch has less free space than the specified value `low' in bytes, then aufs re-tries in round-robin mode.",
			root: true, setup: smallA, br: "a=rw:b=rw", opts: "create=mfsrr:$((1<<30))", do: ">m/1; >m/2; >m/3; >m/4; count 2 a; count 2 b", after: noTmp},
		{says: "mfsrr: Selects a writable branch in most-free-space mode first.",
			root: true, setup: smallA, br: "a=rw:b=rw", opts: "create=mfsrr:$((1<<20))", do: ">m/1; >m/2; count 0 a; count 2 b", after: noTmp},
		{says: "pmfs: Selects a writable branch where the parent dir exists. When the parent dir exists on multiple writable branches, aufs selects the one which has most free space.",
			root: true, setup: smallA + "mkdir a/d a/e b/e", br: "a=rw:b=rw", opts: "create=pmfs", do: ">m/d/f; >m/e/f; has a/d/f b/e/f; lacks b/d a/e/f", after: noTmp},
		{says: "pmfsrr: If there are less than `low' bytes available on all branches where the parent dir exists, aufs selects the one which has the most free space regardless the parent dir.",
			root: true, setup: smallA + "mkdir a/d", br: "a=rw:b=rw", opts: "create=pmfsrr:$((8<<20))", do: ">m/d/f; has b/d/f; lacks a/d/f", after: noTmp},
		{says: "tdmfs: Select the highest writable branch regardless the existence of the parent dir.",
			root: true, setup: smallA + "mkdir b/d", br: "a=rw:b=rw", opts: "create=tdmfs:1000000", do: ">m/d/f; has a/d/f; lacks b/d/f", after: noTmp},
		{says: "tdmfs: If the free space of this branch is less than `low' bytes, then the next highest writable branch will be selected.",
			root: true, setup: smallA, br: "a=rw:b=rw", opts: "create=tdmfs:$((8<<20))", do: ">m/f; has b/f", after: noTmp},
		{says: "tdmfs: If the free space of all writable branches are less than `low' bytes, then create=mfs policy is applied.",
			root: true, setup: smallA, br: "a=rw:b=rw", opts: "create=tdmfs:$((1<<40))", do: ">m/f; has b/f", after: noTmp},
	},
	"exceptions": {
		{says: "If there is a readonly branch with `wh' attribute above the policy-selected branch and the parent dir is marked as opaque, [it] will be created on the nearest upper writable branch than the ro+wh branch.",
			setup: "mkdir b/d c/d; >b/d/.wh..wh..opq; >c/d/x", br: "a=rw:b=ro+wh:c=rw", do: "lacks m/d/x; >m/d/f; has a/d/f; lacks c/d/f"},
		{says: "or the target (creating) file is whiteout-ed on the ro+wh branch",
			setup: "mkdir c/d b/d; >b/d/.wh.f; >c/d/f", br: "a=rw:b=ro+wh:c=rw", do: "lacks m/d/f; echo new >m/d/f; is \"$(cat a/d/f)\" new; is \"$(cat c/d/f)\" ''"},
		{says: "If there is a writable branch above the policy-selected branch and the parent dir is marked as opaque [there]",
			setup: "mkdir a/d b/d; >a/d/.wh..wh..opq", br: "a=rw:b=rw", opts: "create=rr", do: ">m/d/1; >m/d/2; >m/d/3; has a/d/1 a/d/2 a/d/3"},
		{says: "or the target file is whiteout-ed on the branch. In case of whiteout, aufs removes it as usual.",
			setup: "mkdir b/d; >a/.wh.f; >b/f; >b/x", br: "a=rw:b=rw", opts: "create=rr", do: ">m/1; lacks m/f; echo new >m/f; has a/f; lacks a/.wh.f; is \"$(cat m/f)\" new"},
		{says: "link(2) and rename(2) systemcalls are exceptions in every policy. They try selecting the branch where the source exists.",
			setup: ">b/f; >b/g; mkdir a/d", br: "a=rw:b=rw", do: "ln m/f m/d/l; has b/d/l; mv m/g m/d/g; has b/d/g; lacks b/g a/d/g; is $(stat -c %h m/f) 2"},
		{says: "If it can't be, ie. the branch where the source exists is readonly, then they will follow the copyup policy.",
			setup: ">c/f", br: "a=rw:b=rw:c=ro", opts: "cpup=bu", do: "mv m/f m/g; has b/g b/.wh.f; lacks a/g m/f"},
		{says: "If the rename target exists, aufs compares the index of the branches where the source and the target are existing and selects the higher one.",
			setup: "echo src >b/src; echo tgt >a/tgt", br: "a=rw:b=rw", do: "mv m/src m/tgt; is \"$(cat m/tgt)\" src; is \"$(cat a/tgt)\" src; lacks m/src"},
		{says: "If the selected branch is readonly, then aufs follows the copyup policy.",
			setup: "echo src >c/src; echo tgt >b/tgt", br: "a=rw:b=ro:c=rw", do: "mv m/src m/tgt; is \"$(cat a/tgt)\" src; is \"$(cat m/tgt)\" src; lacks m/src"},
	},
	"copy-up policies": {
		{says: "cpup=tdp: Equivalent to the same named policy for create. This is the default policy.",
			setup: "mkdir a/d b/d d/d; >d/d/f", br: "a=rw:b=rw:c=rw:d=ro", do: "echo x >m/d/f; has a/d/f; lacks b/d/f c/d"},
		{says: "cpup=bup: Selects the writable branch where the parent dir exists and the branch is nearest upper one from the copyup-source.",
			setup: "mkdir a/d b/d d/d; >d/d/f", br: "a=rw:b=rw:c=rw:d=ro", opts: "cpup=bup", do: "echo x >m/d/f; has b/d/f; lacks a/d/f c/d"},
		{says: "cpup=bu: Selects the nearest upper writable branch from the copyup-source, regardless the existence of the parent dir.",
			setup: "mkdir a/d b/d d/d; >d/d/f", br: "a=rw:b=rw:c=rw:d=ro", opts: "cpup=bottom-up", do: "echo x >m/d/f; has c/d/f; lacks a/d/f b/d/f"},
	},
	"other options": {
		{says: "diropq=w: aufs will not create it if the directory was not whiteout-ed or opaqued. If the directory was, [it] will be opaque.",
			setup: "mkdir b/d; >b/d/x", br: "a=rw:b=ro", do: "rm -r m/d; mkdir m/d m/e; count 0 m/d; has a/d/.wh..wh..opq; lacks a/e/.wh..wh..opq"},
		{says: "diropq=a: aufs will always create it regardless the directory was whiteout-ed/opaqued or not.",
			br: "a=rw:b=ro", opts: "diropq=a", do: "mkdir m/e; has a/e/.wh..wh..opq; >m/e/f; has a/e/f"},
		{says: "sum: df(1)/statfs(2) returns the total number of blocks and inodes of all branches.",
			root: true, setup: smallA, br: "a=rw:b=rw", opts: "sum", after: noTmp,
			do: "is $(stat -fc %b m) $(( $(stat -fc %b a) + $(stat -fc %b b) )); is $(stat -fc %c m) $(( $(stat -fc %c a) + $(stat -fc %c b) ))"},
		{says: "nosum: This is default value.",
			root: true, setup: smallA, br: "a=rw:b=rw", do: "is $(stat -fc %b m) $(stat -fc %b a)", after: noTmp},
		{says: "shwh: aufs will show you the name of whiteouts with keeping its feature to hide the lowers.",
			setup: ">a/.wh.f; >a/.wh.g; >a/g; >b/f; >b/h; mkdir a/d; >a/d/.wh..wh..opq", br: "a=ro+wh:b=ro", opts: "ro,shwh",
			do: "lacks m/f; has m/.wh.f m/g m/h m/d/.wh..wh..opq; is \"$(ls -A m | tr '\\n' ' ')\" '.wh.f d g h '; stat m/.wh.f >/dev/null"},
		{says: "dirperm1: aufs checks the permission bits of the directory on the topmost branch and the permission bits on all lower branches are ignored.",
			root: true, setup: "mkdir -m 700 b/d; >b/d/f", br: "a=rw:b=ro", opts: "dirperm1",
			do: "fails setpriv --reuid 65534 --clear-groups ls m/d; chmod 755 m/d; setpriv --reuid 65534 --clear-groups ls m/d | grep -q f"},
	},
	"extended attributes": {
		{says: "When an internal copy-up/down happens, aufs tries copying all XATTRs. Here an error can happen because of the XATTR support on the dst branch may different.",
			root: true, setup: bigXattr, br: "a=rw:b=ro", do: "fails sh -c 'echo y >>m/f'; lacks a/f; is \"$(cat m/f)\" x", after: noTmp},
		{says: "`icexusr' [is] for ... \"user\" categories individually.",
			root: true, setup: bigXattr, br: "a=rw+icexusr:b=ro", do: "echo y >>m/f; has a/f; is \"$(getfattr --only-values -n user.small m/f)\" s; fails getfattr -n user.big m/f", after: noTmp},
		{says: "`icexsec' means to ignore an error on copying-up/down XATTR categorized as \"security\".",
			root: true, setup: bigXattr, br: "a=rw+icexsec:b=ro", do: "fails sh -c 'echo y >>m/f'; lacks a/f", after: noTmp},
		{says: "To be convenient, `icex` sets them all.",
			root: true, setup: bigXattr, br: "a=rw+icex:b=ro", do: "echo y >>m/f; has a/f", after: noTmp},
	},
	"hard links": {
		{says: "Even if a file has several names on a readonly branch, a change by one of them is seen by all (plink); here also after a remount.",
			setup: "echo x >b/f; ln b/f b/g; mkdir b/d; ln b/f b/d/h", br: "a=rw:b=ro",
			do: "echo y >>m/f; is \"$(cat m/g)\" \"$(cat m/d/h)\"; is $(stat -c %i m/f) $(stat -c %i m/d/h); is $(stat -c %h m/g) 3; umount_m; mount_m; echo z >>m/d/h; is \"$(cat m/f | tr '\\n' ' ')\" 'x y z '; is $(stat -c %h m/f) 3"},
		{says: "The same across two writable branches: the copy on the upper is what all names stand for.",
			setup: "echo x >b/f; ln b/f b/g; >a/.wh.t; >b/t", br: "a=rw:b=rw",
			do: "ln m/f m/t; has a/t; echo y >>m/g; is \"$(cat m/t | tr '\\n' ' ')\" 'x y '; is \"$(cat m/f | tr '\\n' ' ')\" 'x y '; umount_m; mount_m; is $(stat -c %i m/f) $(stat -c %i m/t); is $(stat -c %h m/f) 3"},
	},
	"directories in several branches": {
		{says: "A directory on several writable branches is renamed on the topmost one with a redirect (layerfs; AUFS says EXDEV).",
			setup: "mkdir -p a/d b/d c/d; >a/d/1; >b/d/2; >c/d/3", br: "a=rw:b=rw:c=ro",
			do: "mv m/d m/e; is \"$(ls m/e | tr '\\n' ' ')\" '1 2 3 '; lacks m/d; has b/d/2; echo x >m/e/2; rm m/e/3; umount_m; mount_m; is \"$(ls m/e | tr '\\n' ' ')\" '1 2 '; is \"$(cat m/e/2)\" x; >m/e/4; has a/e/4; mkdir m/d; count 0 m/d"},
		{says: "One that is on a single writable branch is renamed there.",
			setup: "mkdir -p b/d/s; >b/d/f", br: "a=rw:b=rw", do: "mv m/d m/e; has b/e/f b/e/s; lacks b/d a/e; mv m/e/s m/t; has b/t"},
	},
}

func TestRules(t *testing.T) {
	for name, list := range rules {
		for _, r := range list {
			t.Run(name+"/"+strings.Join(strings.Fields(r.says)[:5], " "), func(t *testing.T) { r.test(t) })
		}
	}
}

func (r *rule) test(t *testing.T) {
	if r.root && !harness.Root() {
		t.Skip("needs file systems of its own")
	}
	e := harness.New(t)
	e.Sh("mkdir a b c d")
	e.Setenv("L", harness.Bin())
	e.Sh(r.setup)
	t.Cleanup(func() { e.Cmd(nil, "sh", "-c", "umount m a b 2>/dev/null || fusermount3 -u m 2>/dev/null") })
	var opts []string
	if r.br != "" {
		opts = append(opts, "br="+r.br)
	}
	if r.opts != "" {
		opts = append(opts, strings.TrimSpace(e.Sh("echo \""+r.opts+"\"")))
	}
	mount := "\"$L\" mount -o '" + strings.Join(opts, ",") + "' m"
	script := prelude + `
layerfs() { "$L" "$@"; }
mount_m() { ` + mount + `; }
umount_m() { "$L" umount m; }
mount_m
` + r.do + `
umount_m
` + r.after
	res := e.Cmd(nil, "sh", "-ec", script)
	require.Zero(t, res.Code, "aufs(5): %s\nbr=%s %s\n%s%s", r.says, r.br, strings.Join(opts, ","), res.Stdout, res.Stderr)
}
