package crash

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/harness"
)

// What the two lowers hold, the upper one first. All of it is old, so that
// times that a change must not touch can be told.
var lowers = `
file=content !0640 @user.a=1
big=` + bigContent + `
hard1=same
hard2=>hard1
sub/hard3=>hard1
link->file
fifo|
dir/in=1
dir/deep/er/f=deep
merged/top=t
hollow/x=x
empty/
other=other
`

const lowers2 = `
merged/bottom=b
hollow/y=y
file=hidden
`

var bigContent = strings.Repeat("0123456789abcdef", 20000)

// op is a change below root.
type op func(root string) error

// change is one case.
type change struct {
	name string
	prep []op // made in the mount before
	do   op
	// written: the change writes to files, whose times it therefore changes
	// before it is complete.
	written bool
}

func write(name, content string) op {
	return func(r string) error { return os.WriteFile(filepath.Join(r, name), []byte(content), 0644) }
}

// patch overwrites the first bytes of a file without truncating it.
func patch(name, content string) op {
	return func(r string) error {
		f, err := os.OpenFile(filepath.Join(r, name), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(content)
		return err
	}
}

func mkdir(name string) op {
	return func(r string) error { return unix.Mkdir(filepath.Join(r, name), 0755) }
}

func rmdir(name string) op {
	return func(r string) error { return unix.Rmdir(filepath.Join(r, name)) }
}

func rm(name string) op {
	return func(r string) error { return unix.Unlink(filepath.Join(r, name)) }
}

func rename(from, to string, flags uint) op {
	return func(r string) error {
		return unix.Renameat2(unix.AT_FDCWD, filepath.Join(r, from), unix.AT_FDCWD, filepath.Join(r, to), flags)
	}
}

func link(from, to string) op {
	return func(r string) error { return unix.Link(filepath.Join(r, from), filepath.Join(r, to)) }
}

func chmod(name string, mode uint32) op {
	return func(r string) error { return unix.Chmod(filepath.Join(r, name), mode) }
}

func tmpfile(name string) op {
	return func(r string) error {
		fd, err := unix.Open(r, unix.O_TMPFILE|unix.O_RDWR, 0644)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Linkat(unix.AT_FDCWD, harness.FdPath(fd), unix.AT_FDCWD, filepath.Join(r, name), unix.AT_SYMLINK_FOLLOW)
	}
}

// xchg is shorter to read in the table.
const xchg = unix.RENAME_EXCHANGE

var changes = []change{
	{name: "copy-up/chmod", do: chmod("file", 0600)},
	{name: "copy-up/setxattr", do: func(r string) error { return unix.Setxattr(r+"/file", "user.b", []byte("2"), 0) }},
	{name: "copy-up/write", do: patch("file", "new"), written: true},
	{name: "copy-up/write big", do: patch("big", "new"), written: true},
	{name: "copy-up/truncate", do: func(r string) error { return unix.Truncate(r+"/big", 5) }, written: true},
	{name: "copy-up/empty", do: func(r string) error { return unix.Truncate(r+"/file", 0) }, written: true},
	{name: "copy-up/hard link", do: chmod("hard2", 0600)},
	{name: "copy-up/second of hard links", prep: []op{chmod("hard1", 0600)}, do: rename("hard2", "moved", 0)},
	{name: "copy-up/symlink", do: func(r string) error { return harness.SetTime(r+"/link", time.Now()) }},
	{name: "copy-up/fifo", do: chmod("fifo", 0600)},
	{name: "copy-up/directory", do: chmod("dir", 0700)},
	{name: "copy-up/deep directory", do: chmod("dir/deep/er", 0700)},
	{name: "copy-up/deep file", do: chmod("dir/deep/er/f", 0600)},

	{name: "create/file", do: func(r string) error { return unix.Mknod(r+"/new", unix.S_IFREG|0640, 0) }},
	{name: "create/in a lower directory", do: mkdir("dir/deep/new")},
	{name: "create/file over whiteout", prep: []op{rm("file")}, do: func(r string) error { return unix.Mknod(r+"/file", unix.S_IFREG|0640, 0) }},
	{name: "create/symlink over whiteout", prep: []op{rm("file")}, do: func(r string) error { return os.Symlink("to", r+"/file") }},
	{name: "create/fifo over whiteout", prep: []op{rm("file")}, do: func(r string) error { return unix.Mkfifo(r+"/file", 0640) }},
	{name: "create/link over whiteout", prep: []op{rm("file")}, do: link("other", "file")},
	{name: "create/directory over whiteout", prep: []op{rm("file")}, do: mkdir("file")},
	{name: "create/directory over directory's whiteout", prep: []op{rmdir("empty"), rm("hollow/x"), rm("hollow/y"), rmdir("hollow")}, do: mkdir("hollow")},
	{name: "create/link of a lower file", do: link("file", "dir/link")},
	{name: "create/link of a lower hard link", do: link("hard1", "hard4")},
	{name: "create/tmpfile", do: tmpfile("tmp")},

	{name: "rename/lower file", do: rename("file", "moved", 0)},
	{name: "rename/lower file, other directory", do: rename("file", "dir/deep/moved", 0)},
	{name: "rename/lower file over lower file", do: rename("file", "other", 0)},
	{name: "rename/upper file", prep: []op{write("up", "u")}, do: rename("up", "moved", 0)},
	{name: "rename/upper file over lower file", prep: []op{write("up", "u")}, do: rename("up", "file", 0)},
	{name: "rename/upper file over whiteout", prep: []op{write("up", "u"), rm("file")}, do: rename("up", "file", 0)},
	{name: "rename/copied file over whiteout", prep: []op{chmod("other", 0600), rm("file")}, do: rename("other", "file", 0)},
	{name: "rename/hard link", do: rename("hard1", "dir/moved", 0)},
	{name: "rename/symlink", do: rename("link", "moved", 0)},
	{name: "rename/upper directory", prep: []op{mkdir("up"), write("up/f", "1")}, do: rename("up", "moved", 0)},
	{name: "rename/upper directory over whiteout", prep: []op{mkdir("up"), write("up/f", "1"), rm("file")}, do: rename("up", "file", 0)},
	{name: "rename/upper directory over empty lower one", prep: []op{mkdir("up"), write("up/f", "1")}, do: rename("up", "empty", 0)},
	{name: "rename/upper directory over a hollow one", prep: []op{mkdir("up"), write("up/f", "1"), rm("hollow/x"), rm("hollow/y")}, do: rename("up", "hollow", 0)},

	{name: "redirect/lower directory", do: rename("dir", "moved", 0)},
	{name: "redirect/merged directory", do: rename("merged", "dir/moved", 0)},
	{name: "redirect/again", prep: []op{rename("merged", "moved", 0)}, do: rename("moved", "dir/moved", 0)},
	{name: "redirect/back", prep: []op{rename("merged", "moved", 0)}, do: rename("moved", "merged", 0)},
	{name: "redirect/over whiteout", prep: []op{rm("file")}, do: rename("dir", "file", 0)},
	{name: "redirect/over empty lower directory", do: rename("dir", "empty", 0)},
	{name: "redirect/over a hollow directory", prep: []op{rm("hollow/x"), rm("hollow/y")}, do: rename("merged", "hollow", 0)},

	{name: "exchange/lower files", do: rename("file", "other", xchg)},
	{name: "exchange/upper and lower file", prep: []op{write("up", "u")}, do: rename("up", "dir/in", xchg)},
	{name: "exchange/file and directory", do: rename("file", "dir", xchg)},
	{name: "exchange/lower directories", do: rename("dir", "merged", xchg)},
	{name: "exchange/upper and merged directory", prep: []op{mkdir("up"), write("up/f", "1")}, do: rename("up", "merged", xchg)},

	{name: "delete/lower file", do: rm("file")},
	{name: "delete/upper file", prep: []op{write("up", "u")}, do: rm("up")},
	{name: "delete/copied file", prep: []op{chmod("file", 0600)}, do: rm("file")},
	{name: "delete/hard link", do: rm("hard1")},
	{name: "delete/copied hard link", prep: []op{chmod("hard1", 0600)}, do: rm("hard1")},
	{name: "delete/last name of hard links", prep: []op{chmod("hard1", 0600), rm("hard1"), rm("hard2")}, do: rm("sub/hard3")},
	{name: "delete/symlink", do: rm("link")},
	{name: "rmdir/lower", do: rmdir("empty")},
	{name: "rmdir/upper", prep: []op{mkdir("up")}, do: rmdir("up")},
	{name: "rmdir/over whiteouts", prep: []op{rm("hollow/x"), rm("hollow/y")}, do: rmdir("hollow")},
	{name: "rmdir/upper over whiteouts", prep: []op{rm("hollow/x"), rm("hollow/y"), rename("hollow", "moved", 0)}, do: rmdir("moved")},
	{name: "rmdir/replaced", prep: []op{rm("file"), mkdir("file")}, do: rmdir("file")},
}
