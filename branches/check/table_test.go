package check

import (
	"os"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/whiteout"
)

const key = "h00112233"

// findings has each thing that may be wrong: how it comes about, what is to
// be found, what is left after a repair.
var findings = []struct {
	name  string
	make  func(b *bench)
	found []string
	left  []string // of found
	gone  []string
}{
	{name: "clean", make: func(b *bench) {
		b.file(".wh.a", "")
		b.file("d/.wh.x", "")
		b.file("other/.wh..wh..opq", "")
		b.file("new/.wh..wh..opq", "/gone")
	}},
	{name: "clean overlay", make: func(b *bench) {
		b.record("overlay user")
		b.device("a")
		b.dir("other")
		b.set("other", "user.overlay.opaque", "y")
		b.set("other", "user.overlay.origin", "\x00")
		b.dir("new")
		b.set("new", "user.overlay.redirect", "/gone")
	}},
	{name: "clean branch of AUFS", make: func(b *bench) {
		require.NoError(b.t, unix.Lremovexattr(b.up, "user.layerfs.format"))
		b.file(".wh..wh.aufs", "")
		b.dir(".wh..wh.plnk")
		b.dir(".wh..wh.orph")
		require.NoError(b.t, os.Link(b.up+"/.wh..wh.aufs", b.up+"/.wh.a"))
		require.NoError(b.t, os.Link(b.up+"/.wh..wh.aufs", b.up+"/d/.wh..wh..opq"))
	}},

	{name: "clean stub", make: func(b *bench) { b.stub(b.pool(), "s", "file") }},
	{name: "damaged stub", make: func(b *bench) {
		b.pool()
		b.file("s", "text")
		b.set("s", "user.layerfs.stub", "2 of another version")
	}, found: []string{"stub-damaged /s"}, left: []string{"stub-damaged /s"}},
	{name: "stub without device", make: func(b *bench) {
		p := b.pool()
		b.stub(p, "s", "")
		delete(p.list, "dev-s")
	}, found: []string{"stub-lost /s"}, left: []string{"stub-lost /s"}},
	{name: "stub of another's device", make: func(b *bench) {
		p := b.pool()
		r := b.stub(p, "s", "")
		b.set("d", "user.nothing", "x")
		b.file("d/t", string(stub.Text()))
		r.Key = stub.NewKey()
		b.set("d/t", "user.layerfs.stub", r.String())
	}, found: []string{"stub-lost /d/t"}, left: []string{"stub-lost /d/t"}},
	{name: "no pool", make: func(b *bench) {
		p := b.pool()
		b.stub(p, "s", "")
		p.broken = errNotHere
	}, found: []string{"stub-pool /.wh..wh.layerfs/pool"}, left: []string{"stub-pool /.wh..wh.layerfs/pool"}},
	{name: "interrupted settle", make: func(b *bench) {
		b.stub(b.pool(), "s", "")
		b.set("s", "user.layerfs.times", "1.0 2.0")
	}, found: []string{"interrupted-settle /s"}, left: []string{"interrupted-settle /s"}},
	{name: "devices without stubs", make: func(b *bench) {
		p := b.pool()
		p.list["a"] = stub.Device{Name: "a", Upper: upperID, State: stub.Creating}
		p.list["b"] = stub.Device{Name: "b", Upper: upperID}
	}, found: []string{"orphan-device /", "unfinished-device /"}, left: []string{"orphan-device /"}},

	{name: "whiteout beside file", make: func(b *bench) { b.file("a", "1"); b.file(".wh.a", "") },
		found: []string{"whiteout-beside-entry /a"}},
	{name: "whiteout beside directory", make: func(b *bench) { b.file(".wh.d", "") },
		found: []string{"whiteout-beside-entry /d", "whiteout-beside-entry /d"}},
	{name: "whiteout beside directory, no record", make: func(b *bench) {
		require.NoError(b.t, unix.Lremovexattr(b.up, "user.layerfs.format"))
		b.file(".wh.d", "")
		b.device("d/x")
	}, found: []string{"whiteout-beside-entry /d", "whiteout-beside-entry /d", "whiteout-in-opaque /d/x"}},
	{name: "whiteout beside directory, overlay", make: func(b *bench) {
		b.record("overlay user")
		b.file(".wh.d", "")
	}, found: []string{"whiteout-beside-entry /d", "whiteout-beside-entry /d"}},
	{name: "whiteout beside redirected directory", make: func(b *bench) {
		b.file("new/.wh..wh..opq", "/gone")
		b.file(".wh.new", "")
	}, found: []string{"whiteout-beside-entry /new"}},

	{name: "whiteout in opaque", make: func(b *bench) {
		b.file("d/.wh..wh..opq", "")
		b.file("d/.wh.x", "")
	}, found: []string{"whiteout-in-opaque /d/x"}},

	{name: "not marked", make: func(b *bench) {
		b.record("xattr user")
		b.file("a", "")
		b.set("a", "user.overlay.whiteout", "")
	}, found: []string{"xattr-whiteout-not-marked /a"}, gone: []string{"/a 0 100644"}},
	{name: "not marked in opaque", make: func(b *bench) {
		b.record("xattr user")
		b.set("d", "user.overlay.opaque", "y")
		b.file("d/x", "")
		b.set("d/x", "user.overlay.whiteout", "")
	}, found: []string{"xattr-whiteout-not-marked /d/x"}, gone: []string{"/d/x 0 100644"}},

	{name: "mixed", make: func(b *bench) {
		b.device("a")
		b.set("d", "user.overlay.opaque", "y")
	}, found: []string{"mixed-dialects /a", "mixed-dialects /d", "mixed-dialects /d"}},
	{name: "mixed, fuse-overlayfs in overlay", make: func(b *bench) {
		b.record("overlay user")
		b.set("d", "user.fuseoverlayfs.opaque", "y")
		b.file("d/.wh..wh..opq", "")
		b.file(".wh.a", "")
	}, found: []string{"mixed-dialects /a", "mixed-dialects /d", "mixed-dialects /d", "mixed-dialects /d/.wh..wh..opq"}},
	{name: "mixed without a record is none", make: func(b *bench) {
		require.NoError(b.t, unix.Lremovexattr(b.up, "user.layerfs.format"))
		b.device("a")
		b.file(".wh.b", "")
	}},

	{name: "bad whiteout", make: func(b *bench) {
		b.file(".wh.a/kept", "1")
		require.NoError(b.t, os.Symlink("x", b.up+"/.wh.b"))
		b.file("d/.wh.x", "content")
	}, found: []string{"bad-whiteout /.wh.a", "bad-whiteout /.wh.b", "bad-whiteout /d/.wh.x"},
		left: []string{"bad-whiteout /.wh.a", "bad-whiteout /.wh.b", "bad-whiteout /d/.wh.x"}},
	{name: "whiteout with content in opaque", make: func(b *bench) {
		b.file("d/.wh..wh..opq", "")
		b.file("d/.wh.x", "content")
	}, found: []string{"bad-whiteout /d/.wh.x"}, left: []string{"bad-whiteout /d/.wh.x"}},
	{name: "bad redirect", make: func(b *bench) {
		b.record("overlay user")
		b.set("d", "user.overlay.redirect", "../other")
	}, found: []string{"bad-redirect /d"}, left: []string{"bad-redirect /d"}},
	{name: "dangling redirect", make: func(b *bench) {
		b.file("new/.wh..wh..opq", "/gone/there")
		b.file("rel/.wh..wh..opq", "nowhere")
		b.file("fine/.wh..wh..opq", "other")
		b.file("deep/in/.wh..wh..opq", "/d/below")
	}, found: []string{"dangling-redirect /new", "dangling-redirect /rel"}},
	{name: "dangling redirect, overlay", make: func(b *bench) {
		b.record("xattr user")
		b.dir("new")
		b.set("new", "user.overlay.redirect", "/a")
	}, found: []string{"dangling-redirect /new"}},
	{name: "needless whiteout", make: func(b *bench) {
		b.file(".wh.nobody", "")
		b.file("own/.wh.nobody", "")
		b.file("d/.wh.x", "")
		b.file("new/.wh..wh..opq", "/other")
		b.file("new/.wh.o", "")
		b.file("new/.wh.x", "")
	}, found: []string{"needless-whiteout /new/x", "needless-whiteout /nobody", "needless-whiteout /own/nobody"}},
	{name: "metacopy", make: func(b *bench) {
		b.file("a", "")
		b.set("a", "user.overlay.metacopy", "")
	}, found: []string{"metacopy /a"}, left: []string{"metacopy /a"}},

	{name: "temporaries", make: func(b *bench) {
		b.file("d/.wh..wh.convert", "")
		b.file("d/.wh..wh..opq.tmp", "")
		b.file(".wh..wh.probe", "")
		b.file("d/.wh..wh.some.name.12ef", "1")
		b.file(".wh..wh.orph/17", "1")
		require.NoError(b.t, os.WriteFile(b.work+"/work/#3", nil, 0600))
	}, found: []string{"leftover-temporary /.wh..wh.orph/17", "leftover-temporary /.wh..wh.probe", "leftover-temporary /d/.wh..wh..opq.tmp",
		"leftover-temporary /d/.wh..wh.convert", "leftover-temporary /d/.wh..wh.some.name.12ef", "leftover-temporary WORK/work/#3"}},
	{name: "links of AUFS", make: func(b *bench) {
		b.file(".wh..wh.plnk/12.34", "only here")
		b.file("a", "1")
		require.NoError(b.t, os.Link(b.up+"/a", b.up+"/.wh..wh.plnk/12.35"))
		b.file(".wh..wh.plnk/what", "")
	}, found: []string{"aufs-link /.wh..wh.plnk/12.34", "aufs-link /.wh..wh.plnk/12.35", "unknown-name /.wh..wh.plnk/what"},
		left: []string{"aufs-link /.wh..wh.plnk/12.34", "unknown-name /.wh..wh.plnk/what"}},
	{name: "dirren and the unknown", make: func(b *bench) {
		b.file(".wh..wh..dr.0123", "")
		b.file("d/.wh..wh.what", "")
	}, found: []string{"aufs-dirren /.wh..wh..dr.0123", "unknown-name /d/.wh..wh.what"},
		left: []string{"aufs-dirren /.wh..wh..dr.0123", "unknown-name /d/.wh..wh.what"}},

	{name: "broken record", make: func(b *bench) { b.record("cvs user"); b.device("a") },
		found: []string{"format-record /"}, left: []string{"format-record /"}},
	{name: "two records", make: func(b *bench) { b.file(whiteout.FormatFile, "overlay user") },
		found: []string{"format-record /"}},
	{name: "conversion under way", make: func(b *bench) { b.record("converting-to-overlay user"); b.file(".wh.a", "") },
		found: []string{"conversion-under-way /"}, left: []string{"conversion-under-way /"}},

	{name: "link records in order", make: func(b *bench) {
		b.set("", "user.layerfs.links", "y")
		b.file("a", "1")
		b.set("a", "user.layerfs.link", key+" 1")
		b.link("a", key)
	}},
	{name: "link record broken, not entered, root not marked", make: func(b *bench) {
		b.file("a", "1")
		b.set("a", "user.layerfs.link", "nonsense")
		b.file("b", "1")
		b.set("b", "user.layerfs.link", key+" 1")
	}, found: []string{"link-record /", "link-record /a", "link-record /b"}},
	{name: "link record of another file", make: func(b *bench) {
		b.set("", "user.layerfs.links", "y")
		for _, f := range []string{"a", "b"} {
			b.file(f, "1")
			b.set(f, "user.layerfs.link", key+" 1")
		}
		b.link("a", key)
	}, found: []string{"link-record /b"}},
	{name: "link count left frozen", make: func(b *bench) {
		b.set("", "user.layerfs.links", "y")
		b.file("a", "1")
		b.set("a", "user.layerfs.link", key+" =3")
		b.link("a", key)
		b.keep("live", "")
	}, found: []string{"link-record WORK/layerfs/links/" + key, "live-mark WORK/layerfs/live"}},
	{name: "stray copy", make: func(b *bench) {
		b.set("", "user.layerfs.links", "y")
		b.file(".wh..wh.plnk/"+key, "1")
		b.set(".wh..wh.plnk/"+key, "user.layerfs.link", key+" -2")
		b.link(".wh..wh.plnk/"+key, key)
	}, found: []string{"stray-link-copy WORK/layerfs/links/" + key}},
	{name: "announced deletion", make: func(b *bench) {
		require.NoError(b.t, os.Symlink("-1 ?/a", b.work+"/layerfs/links/n"+key))
		b.keep("live", "")
	}, found: []string{"link-record WORK/layerfs/links/n" + key, "live-mark WORK/layerfs/live"},
		left: []string{"link-record WORK/layerfs/links/n" + key, "live-mark WORK/layerfs/live"}},
	{name: "note of a symbolic link", make: func(b *bench) {
		require.NoError(b.t, os.Symlink("to", b.up+"/l"))
		b.link("l", key)
		require.NoError(b.t, os.Symlink(key+" =2", b.work+"/layerfs/links/r"+key))
	}, found: []string{"link-record WORK/layerfs/links/" + key}},

	{name: "unclean ends", make: func(b *bench) { b.keep("live", ""); b.keep("volatile", "") },
		found: []string{"live-mark WORK/layerfs/live", "volatile-mark WORK/layerfs/volatile"},
		left:  []string{"volatile-mark WORK/layerfs/volatile"}},
	{name: "volatile mark of the kernel", make: func(b *bench) {
		require.NoError(b.t, os.MkdirAll(b.work+"/work/incompat/volatile", 0700))
	}, found: []string{"volatile-mark WORK/work/incompat"}, left: []string{"volatile-mark WORK/work/incompat"}},
	{name: "rename of a file", make: func(b *bench) {
		b.record("xattr user")
		b.set("", "user.overlay.opaque", "x")
		b.file("a", "1")
		require.NoError(b.t, os.Link(b.up+"/a", b.up+"/moved"))
		b.keep("rename#1", records.Rename{FromIno: b.ino("a"), ToIno: b.ino("moved"), From: "a", To: "moved"}.String())
	}, found: []string{"interrupted-rename /a"}, gone: []string{"/a 0 100644"}},
	{name: "rename of a directory", make: func(b *bench) {
		b.record("xattr user")
		b.set("", "user.overlay.opaque", "x")
		b.dir("gone")
		b.keep("rename#1", records.Rename{FromIno: b.ino("gone"), ToIno: b.ino("d"), From: "gone", To: "d"}.String())
	}, found: []string{"interrupted-rename /gone"}, gone: []string{"/gone 0 40755"}},
	{name: "rename not begun, broken note", make: func(b *bench) {
		b.record("xattr user")
		b.file("a", "1")
		b.keep("rename#1", records.Rename{FromIno: b.ino("a"), ToIno: b.ino("a"), From: "a", To: "moved"}.String())
		b.keep("rename#2", "nonsense")
	}, found: []string{"interrupted-rename /a", "interrupted-rename WORK/layerfs/rename#2"}},
}
