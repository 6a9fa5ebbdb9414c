package main

import (
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/bench/work"
)

// row is one piece of work.
type row struct {
	name   string
	target float64 // the ratio to kernel overlay that is wanted, 0 for none
	how    how
	work   func(root string)
}

// how says what comes before a piece of work.
type how uint8

const (
	onceMore how = iota // nothing
	cold                // nothing is cached
	warm                // the same, to fill the caches
	fresh               // a mount of which nothing is in the upper
)

// Sizes of the work; -short makes them smaller.
var (
	bigSize = int64(512 << 20)
	files   = 2000
	reads   = 20000
)

const bigName = "big.bin"

func rows() []row {
	return []row{
		{"find -ls cold", 1.3, cold, find},
		{"find -ls warm", 1.1, warm, find},
		{"tar cold", 1.3, cold, tree},
		{"tar warm", 1.1, warm, tree},
		{"read the big file cold", 1, cold, readBig},
		{"read the big file warm", 1, warm, readBig},
		{"random 4 KiB reads warm", 1, warm, randomReads},
		{fmt.Sprintf("create %d × 4 KiB", files), 3, onceMore, createFiles},
		{fmt.Sprintf("rewrite %d", files/2), 4, onceMore, rewriteFiles},
		{fmt.Sprintf("remove %d", files), 3, onceMore, removeFiles},
		{"write the big file + fsync", 1.1, onceMore, writeBig},
		{"untar a tree", 2.5, onceMore, untar},
		{"rm -r it", 2.5, onceMore, func(r string) { sh("rm", "-r", filepath.Join(r, "untarred")) }},
		{"mv usr/share (lower)", 0.05, fresh, func(r string) { sh("mv", filepath.Join(r, "usr/share"), filepath.Join(r, "moved")) }},
		{rowChown, 0, fresh, func(r string) { sh("chown", "-R", "12:34", filepath.Join(r, "usr")) }},
		{"rm -rf var usr/lib (lower)", 1, fresh, func(r string) { sh("rm", "-rf", filepath.Join(r, "var"), filepath.Join(r, "usr/lib")) }},
		{"first 4 KiB write into the big file", 0, fresh, firstWrite},
	}
}

const rowChown = "chown -R usr (lower)" // root's alone

// timed does r on root and returns the time that counts, and an error when an ordinary
// user cannot do it. user is whose work it is.
func (r *row) timed(root string, user uint32) (time.Duration, error) {
	switch r.how {
	case cold:
		unix.Sync()
		work.Check(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	case warm:
		if _, err := r.do(root, user); err != nil {
			return 0, err
		}
	}
	return r.do(root, user)
}

// do does r once, an ordinary user's in a process of his.
func (r *row) do(root string, user uint32) (time.Duration, error) {
	if user == 0 {
		start := time.Now()
		r.work(root)
		return time.Since(start), nil
	}
	cmd := exec.Command("/proc/self/exe", append(os.Args[1:], "-do", r.name, "-root", root)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %.200s", r.name, err, out)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	return time.Duration(n), err
}

// doRow is what such a process does: one row, and how long it took.
func doRow(name, root string) error {
	for _, r := range rows() {
		if r.name == name {
			took, err := r.do(root, 0)
			fmt.Println(took.Nanoseconds())
			return err
		}
	}
	return fmt.Errorf("no row is called %s", name)
}

func find(root string) { sh("find", root, "-xdev", "-ls") }

// tree packs everything but the big file. The pipe matters: tar does not read
// file contents when it writes to /dev/null.
func tree(root string) {
	sh("sh", "-c", `tar -C "$1" --exclude=./`+bigName+` --exclude=./untarred -cf - . | cat >/dev/null`, "sh", root)
}

func readBig(root string) {
	f, err := os.Open(filepath.Join(root, bigName))
	work.Check(err)
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		n, _ := f.Read(buf)
		if n == 0 {
			return
		}
	}
}

func randomReads(root string) {
	f, err := os.Open(filepath.Join(root, bigName))
	work.Check(err)
	defer f.Close()
	rnd := rand.New(rand.NewSource(1))
	buf := make([]byte, 4096)
	for i := 0; i < reads; i++ {
		_, err := f.ReadAt(buf, rnd.Int63n(bigSize/4096)*4096)
		work.Check(err)
	}
}

func fileName(root string, i int) string { return filepath.Join(root, "made", fmt.Sprint(i)) }

func createFiles(root string) {
	work.Check(os.Mkdir(filepath.Join(root, "made"), 0755))
	buf := make([]byte, 4096)
	for i := 0; i < files; i++ {
		work.Check(os.WriteFile(fileName(root, i), buf, 0644))
	}
}

func rewriteFiles(root string) {
	buf := make([]byte, 4096)
	for i := 0; i < files/2; i++ {
		f, err := os.OpenFile(fileName(root, i), os.O_WRONLY, 0)
		work.Check(err)
		_, err = f.Write(buf)
		work.Check(err)
		work.Check(f.Close())
	}
}

func removeFiles(root string) {
	for i := 0; i < files; i++ {
		work.Check(os.Remove(fileName(root, i)))
	}
}

func writeBig(root string) {
	f, err := os.Create(filepath.Join(root, "written"))
	work.Check(err)
	defer f.Close()
	buf := make([]byte, 1<<20)
	for n := int64(0); n < bigSize; n += int64(len(buf)) {
		_, err := f.Write(buf)
		work.Check(err)
	}
	work.Check(f.Sync())
}

func untar(root string) {
	to := filepath.Join(root, "untarred")
	work.Check(os.Mkdir(to, 0755))
	sh("tar", "-C", to, "-xf", filepath.Join(*dir, "share.tar"))
}

func firstWrite(root string) {
	f, err := os.OpenFile(filepath.Join(root, bigName), os.O_RDWR, 0)
	work.Check(err)
	defer f.Close()
	_, err = f.WriteAt(make([]byte, 4096), bigSize/2)
	work.Check(err)
}

func writeRandom(path string, size int64) {
	f, err := os.Create(path)
	work.Check(err)
	defer f.Close()
	rnd := rand.New(rand.NewSource(2))
	buf := make([]byte, 1<<20)
	for n := int64(0); n < size; n += int64(len(buf)) {
		rnd.Read(buf)
		_, err := f.Write(buf)
		work.Check(err)
	}
}

// makeTree makes a tree with the shape of a small root: many small files in
// directories of different sizes.
func makeTree(root string) {
	rnd := rand.New(rand.NewSource(3))
	buf := make([]byte, 64<<10)
	rnd.Read(buf)
	for _, top := range []string{"usr/share", "usr/lib", "var/lib", "etc"} {
		for d := 0; d < 40; d++ {
			sub := filepath.Join(root, top, fmt.Sprintf("d%d", d))
			work.Check(os.MkdirAll(sub, 0755))
			for i := 0; i < 5+rnd.Intn(25); i++ {
				work.Check(os.WriteFile(filepath.Join(sub, fmt.Sprintf("file%d", i)), buf[:rnd.Intn(12<<10)], 0644))
			}
		}
	}
}

// sh runs a tool whose standard output does not matter.
func sh(name string, args ...string) {
	cmd := exec.Command(name, args...)
	var text strings.Builder
	cmd.Stderr = &text
	if err := cmd.Run(); err != nil {
		work.Check(fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, text.String()))
	}
}
