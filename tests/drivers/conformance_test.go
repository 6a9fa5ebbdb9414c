package drivers

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// base is a root file system in small, of what an ordinary user can make too.
const base = `
	etc/passwd=root !0640
	etc/conf.d/a=1
	etc/conf.d/b=2
	usr/bin/tool=#!/bin/sh !0755 @user.note=kept
	usr/bin/alias=>usr/bin/tool
	usr/lib/libc=text
	usr/lib/deep/er/file=x
	var/log/
	var/empty/ !0700
	tmp/ !1777
	bin->usr/bin
	fifo|
	swap=one
	swap2=two
`

// changes is what a program does to such a tree, every kind of change once.
const changes = `
	cd "$1"
	echo more >> etc/passwd; touch -d 2002-02-02 etc/passwd
	rm etc/conf.d/a
	echo new > etc/conf.d/c; touch -d 2002-02-02 etc/conf.d/c
	rm -r usr/lib/deep; mkdir usr/lib/deep; echo y > usr/lib/deep/other; touch -d 2002-02-02 usr/lib/deep/other
	rm -r var/log; echo file > var/log; touch -d 2002-02-02 var/log
	rm swap; mkdir swap; echo in > swap/in; touch -d 2002-02-02 swap/in
	mv swap2 swap3
	chmod 0600 usr/lib/libc
	ln -s nowhere link; touch -h -d 2002-02-02 link
	mkdir -m 0711 opt; ln etc/conf.d/c opt/c
	setfattr -n user.mark -v here opt
	rm fifo; mkfifo fifo; touch -d 2002-02-02 fifo
	head -c 100000 /dev/zero > opt/zeros; touch -d 2002-02-02 opt/zeros
	find . -type d -exec touch -d 2002-02-02 {} +
`

// story imports, changes and commits, and returns what of it must not depend on the
// driver: trees, lists and layers.
func story(s *store) (tree, changed []string, layers [][]byte) {
	t := s.T
	s.ok("layer", "import", "base", s.tar("base.tar", base))
	s.ok("container", "create", "--from", "base", "c")
	m := s.ok("container", "mount", "c")
	fresh := harness.Dump(t, s.P("base.tar.d"), harness.DumpOptions{Times: true})
	if s.ordinary { // who cannot give files away
		for i := range fresh {
			fresh[i] = strings.Replace(fresh[i], " 0:0", fmt.Sprintf(" %[1]d:%[1]d", harness.Ordinary), 1)
		}
	}
	require.Equal(t, fresh, harness.Dump(t, m, harness.DumpOptions{Times: true}), "a fresh container is what was imported")
	s.script(changes, m)
	tree = harness.Dump(t, m, harness.DumpOptions{Times: true})
	changed = strings.Split(s.ok("container", "changes", "c"), "\n")
	s.ok("container", "diff", "c", "-o", s.P("diff.tar"))
	s.ok("container", "commit", "c", "base2")
	require.Equal(t, tree, harness.Dump(t, m, harness.DumpOptions{Times: true}), "a commit leaves the container as it is")

	s.ok("container", "create", "--from", "base2", "d")
	n := s.ok("container", "mount", "d")
	require.Equal(t, tree, harness.Dump(t, n, harness.DumpOptions{Times: true}), "a container of the committed layer")
	require.Empty(t, s.ok("container", "changes", "d"))
	s.ok("layer", "diff", "base", "-o", s.P("l1.tar"))
	s.ok("layer", "diff", "base2", "-o", s.P("l2.tar"))
	for _, f := range []string{"diff.tar", "l1.tar", "l2.tar"} {
		data, err := os.ReadFile(s.P(f))
		require.NoError(t, err)
		layers = append(layers, data)
	}
	require.Equal(t, s.Sh("tar tvf diff.tar"), s.Sh("tar tvf l2.tar"))
	return tree, changed, layers
}

// script runs a shell script as the user of the store.
func (s *store) script(script string, args ...string) (out string) {
	s.T.Helper()
	var r harness.Result
	if s.ordinary {
		r = s.Cmd(harness.AsOrdinary, "sh", append([]string{"-ec", script, "sh"}, args...)...)
	} else {
		r = s.Cmd(nil, "sh", append([]string{"-ec", script, "sh"}, args...)...)
	}
	require.Zero(s.T, r.Code, "%s%s", r.Stdout, r.Stderr)
	return r.Stdout
}

// TestSame: the same work gives the same tree and the same layers, byte for byte,
// with every driver.
func TestSame(t *testing.T) {
	var first []string
	type result struct {
		tree, changes []string
		layers        [][]byte
	}
	results := map[bool]result{}
	each(t, func(s *store) {
		tree, changes, layers := story(s)
		if s.ordinary { // owners are others then
			return
		}
		first = append(first, s.driver)
		if len(first) == 1 {
			results[true] = result{tree, changes, layers}
			return
		}
		want := results[true]
		require.Equal(t, want.tree, tree, "the tree of %s and %s", first[0], s.driver)
		require.Equal(t, want.changes, changes)
		for i := range layers {
			require.True(t, string(want.layers[i]) == string(layers[i]), "layer %d of %s and %s differ", i, first[0], s.driver)
		}
	})
	require.Equal(t, []string{
		"C /etc", "C /etc/conf.d", "D /etc/conf.d/a", "A /etc/conf.d/c", "C /etc/passwd", "C /fifo", "A /link", "A /opt", "A /opt/c", "A /opt/zeros",
		"C /swap", "A /swap/in", "D /swap2", "A /swap3", "C /tmp", "C /usr", "C /usr/bin", "C /usr/lib", "C /usr/lib/deep", "D /usr/lib/deep/er",
		"A /usr/lib/deep/other", "C /usr/lib/libc", "C /var", "C /var/empty", "C /var/log",
	}, results[true].changes)
}

// TestApart: what is changed in one container is seen nowhere else.
func TestApart(t *testing.T) {
	each(t, func(s *store) {
		s.ok("layer", "import", "base", s.tar("base.tar", base))
		s.ok("layer", "diff", "base", "-o", s.P("before.tar"))
		var at []string
		for _, name := range []string{"a", "b", "c"} {
			s.ok("container", "create", "--from", "base", name)
			at = append(at, s.ok("container", "mount", name))
		}
		fresh := harness.Dump(s.T, at[2], harness.DumpOptions{Times: true})
		s.script(changes, at[0])
		s.script(`cd "$1"; rm -r *`, at[1])
		require.Equal(s.T, fresh, harness.Dump(s.T, at[2], harness.DumpOptions{Times: true}))
		require.Empty(s.T, harness.Names(s.T, at[1]))
		s.ok("layer", "diff", "base", "-o", s.P("after.tar"))
		s.Sh("cmp before.tar after.tar")
		require.NotContains(s.T, s.ok("container", "changes", "b"), "A ")
		s.ok("container", "commit", "b", "nothing")
		s.ok("container", "create", "--from", "nothing", "n")
		require.Empty(s.T, harness.Names(s.T, s.ok("container", "mount", "n")))
	})
}

// TestDeep: more layers on each other than a page of mount options has room for, each
// seen in order.
func TestDeep(t *testing.T) {
	const depth = 130
	if testing.Short() {
		t.Skip("it takes long, and is the same for everybody")
	}
	each(t, func(s *store) {
		var layers []layer
		for i := range depth {
			n := strconv.Itoa(i)
			layers = append(layers, layer{{Name: "same", Data: n}, {Name: "f" + n, Data: n}})
		}
		s.ok("layer", "import-image", s.dockerArchive("deep.tar", "deep:1", layers))
		s.ok("container", "create", "--from", "deep:1", "top")
		m := s.ok("container", "mount", "top")
		names := harness.Names(s.T, m)
		require.Len(s.T, names, depth+1)
		require.Contains(s.T, names, "f0=0")
		require.Contains(s.T, names, "f129=129")
		require.Contains(s.T, names, "same=129")
		s.script(`rm "$1"/f3 "$1"/same`, m)
		s.ok("container", "commit", "top", "cut")
		s.ok("container", "create", "--from", "cut", "again")
		require.Len(s.T, harness.Names(s.T, s.ok("container", "mount", "again")), depth-1)
	})
}

// TestEmpty: a container that stands on nothing, and what becomes of it.
func TestEmpty(t *testing.T) {
	each(t, func(s *store) {
		s.ok("container", "create", "c")
		m := s.ok("container", "mount", "c")
		require.Empty(s.T, harness.Names(s.T, m))
		require.Equal(s.T, uint32(0755), harness.Stat(s.T, m).Mode&07777)
		s.script(`cd "$1"; mkdir a; echo 1 > a/f; chmod 0750 .`, m)
		s.ok("container", "commit", "c", "l")
		s.ok("container", "umount", "c")
		s.ok("container", "create", "--from", "l", "d")
		n := s.ok("container", "mount", "d")
		require.Equal(s.T, []string{"a/", "a/f=1\n"}, harness.Names(s.T, n))
		require.Equal(s.T, uint32(0750), harness.Stat(s.T, n).Mode&07777, "the root's attributes come along")
	})
}

// TestMounting: where, again, busy, gone.
func TestMounting(t *testing.T) {
	each(t, func(s *store) {
		s.ok("layer", "import", "base", s.tar("base.tar", "f=1"))
		s.ok("container", "create", "--from", "base", "c")
		m := s.ok("container", "mount", "c")
		require.Equal(s.T, m, s.ok("container", "mount", "c"), "mounted already")
		require.Contains(s.T, s.ok("container", "ls"), m)
		s.fails(4, "mounted on "+m, "container", "mount", "c", s.P("m"))
		s.script(`echo 2 > "$1"/f`, m)
		s.ok("container", "umount", "c")
		s.fails(3, "not mounted", "container", "umount", "c")
		require.NotContains(s.T, s.ok("container", "ls"), m)
		m = s.ok("container", "mount", "c")
		require.Equal(s.T, []string{"f=2\n"}, harness.Names(s.T, m), "what was written is there after an unmount")
		s.ok("container", "umount", "c")

		s.fails(3, "mountpoint", "container", "mount", "c", s.P("absent"))
		s.fails(2, "not a directory", "container", "mount", "c", s.P("base.tar"))
		if s.driver != "union" && !s.devices() && (s.ordinary || !harness.Root()) {
			s.fails(7, "cannot mount", "container", "mount", "c", s.P("m"))
			return
		}
		require.Equal(s.T, s.P("m"), s.ok("container", "mount", "c", s.P("m")))
		require.Equal(s.T, []string{"f=2\n"}, harness.Names(s.T, s.P("m")))
		f, err := os.Open(s.P("m", "f"))
		require.NoError(s.T, err)
		s.fails(4, "in use", "container", "umount", "c")
		s.fails(4, "mounted on", "container", "rm", "c")
		s.fails(4, "in use", "container", "rm", "-f", "c")
		f.Close()
		s.ok("container", "rm", "--force", "c")
		require.Empty(s.T, harness.Names(s.T, s.P("m")))
	})
}

// TestUnmountedByHand: the store believes the kernel, not its own notes.
func TestUnmountedByHand(t *testing.T) {
	for _, p := range places() {
		if p.driver != "overlay" && p.driver != "union" {
			continue
		}
		t.Run(p.String(), func(t *testing.T) {
			s := newStore(t, p)
			s.ok("container", "create", "c")
			m := s.ok("container", "mount", "c")
			s.Sh("umount " + m + " 2>/dev/null || fusermount3 -u " + m)
			require.NotContains(t, s.ok("container", "ls"), m)
			s.ok("container", "umount", "c") // tidies up
			s.fails(3, "not mounted", "container", "umount", "c")
			require.Equal(t, m, s.ok("container", "mount", "c"))
			s.Sh("umount " + m + " 2>/dev/null || fusermount3 -u " + m)
			s.ok("container", "rm", "c")
		})
	}
}

// TestUsage: sizes are those of the changes, and info says what Docker said.
func TestUsage(t *testing.T) {
	fields := map[string]string{
		"overlay":      "Backing Filesystem: extfs\n Supports d_type: true\n Using metacopy: false\n Native Overlay Diff: true\n userxattr: false",
		"union":        " Backing Filesystem: extfs\n Dirs: 2\n Dirperm1 Supported: true",
		"btrfs":        "Storage Driver: btrfs\n Btrfs: ",
		"vfs":          "Storage Driver: vfs\nRoot Dir: ",
		"devicemapper": " Pool Blocksize: 65.54kB\n Base Device Size: 536.9MB\n Backing Filesystem: ext4\n Data file: /dev/loop",
		"thin":         " Pool Blocksize: 65.54kB\n Base Device Size: 536.9MB\n Backing Filesystem: ext4\n Data file: ",
	}
	each(t, func(s *store) {
		s.Sh("mkdir big.d && head -c 8M /dev/urandom > big.d/big && tar -C big.d -cf big.tar .")
		s.ok("layer", "import", "big", s.P("big.tar"))
		s.ok("container", "create", "--from", "big", "c")
		info := s.ok("info")
		require.Contains(s.T, info, "Containers: 1\nImages: 1\nStorage Driver: "+s.driver)
		require.Contains(s.T, info, fields[s.driver])
		m := s.ok("container", "mount", "c")
		s.script(`head -c 1M /dev/urandom > "$1"/more; sync "$1"/more`, m)
		size := field(s.lines("container", "ls", "--size")[0], 4)
		if s.driver == "vfs" && !reflinks(s) {
			require.Equal(s.T, "9.4", size[:3], "copied in full")
		} else {
			require.Regexp(s.T, `^1\.\d+MB$`, size)
		}
	})
}

// TestSize: a container may be larger than others, where it has a file system of its own.
func TestSize(t *testing.T) {
	each(t, func(s *store) {
		s.ok("layer", "import", "base", s.tar("base.tar", "f=1"))
		if !s.devices() {
			s.fails(7, "cannot limit the size", "container", "create", "--size", "1G", "c")
			return
		}
		space := func(c string) uint64 {
			var st unix.Statfs_t
			require.NoError(s.T, unix.Statfs(s.ok("container", "mount", c), &st))
			return st.Blocks * uint64(st.Bsize) >> 20
		}
		s.ok("container", "create", "--from", "base", "small")
		s.ok("container", "create", "--from", "base", "--size", "1G", "large")
		require.Less(s.T, space("small"), uint64(600))
		require.Greater(s.T, space("large"), uint64(900))
		s.fails(2, "Container size cannot be smaller than 536.9MB", "container", "create", "--size", "100M", "tiny")
		s.ok("container", "commit", "large", "larger")
		s.ok("container", "create", "--from", "larger", "child")
		require.Greater(s.T, space("child"), uint64(900))
		s.ok("container", "rm", "-f", "large")
		s.more = []string{"--storage-opt", "dm.basesize=800M"}
		s.ok("container", "create", "--from", "base", "grown")
		require.Greater(s.T, space("grown"), uint64(700), "the base device has grown, and so has what stands on it")
	})
}

// TestPoolFull: who writes into a pool without room is told, others go on, removing
// works, and growing makes room.
func TestPoolFull(t *testing.T) {
	harness.RequireRoot(t)
	if os.Getenv("LAYERFS_TEST_DRIVERS") != "" {
		t.Skip("tests/vm has its own")
	}
	s := newStore(t, place{driver: "thin"})
	s.more = []string{"--storage-opt", "dm.loopdatasize=96M", "--storage-opt", "dm.min_free_space=0", "--storage-opt", "thin.no_space_timeout=2s"}
	s.ok("layer", "import", "base", s.tar("base.tar", "f=1"))
	s.ok("container", "create", "--from", "base", "greedy")
	s.ok("container", "create", "--from", "base", "other")
	o := s.ok("container", "mount", "other")
	m := s.ok("container", "mount", "greedy")
	r := s.Cmd(nil, "sh", "-c", "head -c 200M /dev/urandom > "+m+"/big && sync -f "+m)
	require.NotZero(t, r.Code)
	require.Less(t, r.Took, time.Minute)
	require.Equal(t, []string{"f=1"}, harness.Names(t, o), "others can be read")
	s.ok("container", "rm", "-f", "greedy")
	s.ok("device", "resize", "256M")
	s.ok("container", "create", "--from", "base", "modest")
	m = s.ok("container", "mount", "modest")
	s.Sh("head -c 100M /dev/urandom > " + m + "/big && sync -f " + m)
	s.fails(2, "shrink", "device", "resize", "128M")
	s.ok("container", "umount", "modest")
	s.ok("container", "mount", "modest")
	require.EqualValues(t, 100<<20, harness.Stat(t, m+"/big").Size)
}

// TestOneBlock: a small change in a large file takes a block of the pool or two, with the
// file system's own notes a few, however large the file is (Docker's documentation: "when
// 56 KB are written, one block").
func TestOneBlock(t *testing.T) {
	for _, p := range places() {
		s := &store{place: p}
		if !s.devices() {
			continue
		}
		t.Run(p.String(), func(t *testing.T) {
			s := newStore(t, p)
			s.Sh("mkdir big.d && head -c 64M /dev/urandom > big.d/big && tar -C big.d -cf big.tar .")
			s.ok("layer", "import", "big", s.P("big.tar"))
			s.ok("container", "create", "--from", "big", "c")
			before := s.dataUsed()
			s.script(`dd if=/dev/urandom of="$1"/big bs=32K count=1 seek=1000 conv=notrunc,fsync 2>/dev/null`, s.ok("container", "mount", "c"))
			s.ok("container", "umount", "c")
			grown := s.dataUsed() - before
			require.GreaterOrEqual(t, grown, 1*65536.0)
			require.LessOrEqual(t, grown, 12*65536.0, "one block for the data, a few for inode, superblock and journal")
			t.Logf("32 KiB in a file of 64 MiB: %.1f kB", grown/1000)
			if p.driver == "devicemapper" {
				return // the kernel does not say which of a device's blocks are its own
			}
			size := field(s.lines("container", "ls", "--size")[0], 4)
			require.Regexp(t, `^[0-9.]+kB$`, size)
			var kb float64
			_, err := fmt.Sscanf(size, "%gkB", &kb)
			require.NoError(t, err)
			require.InDelta(t, grown, 1000*kb, 65536, "what the container is said to take")
		})
	}
}

// reflinks reports whether the store's file system shares blocks.
func reflinks(s *store) bool {
	s.Sh("echo x > r1")
	return s.Cmd(nil, "cp", "--reflink=always", s.P("r1"), s.P("r2")).Code == 0
}

// field returns a column of a listing.
func field(line string, n int) string {
	f := strings.Fields(line)
	if n >= len(f) {
		return ""
	}
	return f[n]
}

// dataUsed is how many bytes of the pool's data are in use, as info says it.
func (s *store) dataUsed() (n float64) {
	s.T.Helper()
	_, after, ok := strings.Cut(s.ok("info"), "Data Space Used: ")
	require.True(s.T, ok)
	var unit string
	_, err := fmt.Sscanf(after, "%g%s", &n, &unit)
	require.NoError(s.T, err)
	require.Equal(s.T, "MB", unit)
	return n * 1e6
}

// TestNestedSubvolumes: subvolumes that were made in a container go with it.
func TestNestedSubvolumes(t *testing.T) {
	harness.RequireRoot(t)
	s := newStore(t, place{driver: "btrfs"})
	s.ok("container", "create", "c")
	m := s.ok("container", "mount", "c")
	s.Sh("mkdir " + m + "/d && btrfs subvolume create " + m + "/d/sub && btrfs subvolume create " + m + "/d/sub/sub && echo x > " + m + "/d/sub/sub/f")
	s.ok("container", "rm", "c")
	entries, err := os.ReadDir(filepath.Join(s.root, "btrfs"))
	require.NoError(t, err)
	require.Empty(t, entries)
}
