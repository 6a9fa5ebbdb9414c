package main

import (
	"flag"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/bench/work"
)

var (
	dir     = flag.String("dir", "", "a fresh file system with the tree in DIR/lower")
	layerfs = flag.String("layerfs", "bin/layerfs", "the program")
	rounds  = flag.Int("rounds", 3, "rounds; the median counts")
	short   = flag.Bool("short", false, "a small made-up tree, one round")
	many    = flag.Bool("branches", false, "compare numbers of branches instead of peers")
)

// peer is one way of putting an upper over the lower.
type peer struct {
	name  string
	tool  string // what must be installed; "" always there
	mount func(lower, upper, work, mnt string) error
}

var peers = []peer{
	{"native", "", nil},
	{"overlay", "", func(lower, upper, work, mnt string) error {
		return unix.Mount("overlay", mnt, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work))
	}},
	{"layerfs", "", func(lower, upper, work, mnt string) error {
		return run(*layerfs, "-o", fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work), mnt)
	}},
	{"fuse-overlayfs", "fuse-overlayfs", func(lower, upper, work, mnt string) error {
		return run("fuse-overlayfs", "-o", fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work), mnt)
	}},
	{"unionfs-fuse", "unionfs", func(lower, upper, _, mnt string) error {
		lowers := strings.ReplaceAll(lower, ":", "=RO:")
		return run("unionfs", "-o", "cow,allow_other,suid,dev", upper+"=RW:"+lowers+"=RO", mnt)
	}},
}

// row is one piece of work. It returns the time that counts.
type row struct {
	name  string
	fresh bool // wants the lower as it is, with nothing in the upper
	work  func(root string) time.Duration
}

// Sizes of the work; -short makes them smaller.
var (
	bigSize = int64(512 << 20)
	files   = 2000
	reads   = 20000
)

const bigName = "big.bin"

func rows() []row {
	return []row{
		{"find -ls cold", false, cold(func(r string) { sh("find", r, "-xdev", "-ls") })},
		{"find -ls warm", false, warm(func(r string) { sh("find", r, "-xdev", "-ls") })},
		{"tar cold", false, cold(tree)},
		{"tar warm", false, warm(tree)},
		{"read the big file cold", false, cold(readBig)},
		{"read the big file warm", false, warm(readBig)},
		{"random 4 KiB reads warm", false, warm(randomReads)},
		{fmt.Sprintf("create %d × 4 KiB", files), false, timed(createFiles)},
		{fmt.Sprintf("rewrite %d", files/2), false, timed(rewriteFiles)},
		{fmt.Sprintf("remove %d", files), false, timed(removeFiles)},
		{"write the big file + fsync", false, timed(writeBig)},
		{"untar a tree", false, timed(untar)},
		{"rm -r it", false, timed(func(r string) { sh("rm", "-r", filepath.Join(r, "untarred")) })},
		{"mv usr/share (lower)", true, timed(func(r string) { sh("mv", filepath.Join(r, "usr/share"), filepath.Join(r, "moved")) })},
		{"chown -R usr (lower)", true, timed(func(r string) { sh("chown", "-R", "12:34", filepath.Join(r, "usr")) })},
		{"rm -rf var usr/lib (lower)", true, timed(func(r string) { sh("rm", "-rf", filepath.Join(r, "var"), filepath.Join(r, "usr/lib")) })},
		{"first 4 KiB write into the big file", true, timed(firstWrite)},
	}
}

func main() {
	flag.Parse()
	if *short {
		*rounds, bigSize, files, reads = 1, 64<<20, 500, 5000
	}
	work.Main(bench)
}

func bench() error {
	lower := filepath.Join(*dir, "lower")
	if *short {
		makeTree(lower)
	}
	there := installed()
	if *many {
		branches(there, lower)
		return nil
	}
	writeRandom(filepath.Join(lower, bigName), bigSize)
	// What untar unpacks: a part of the tree, packed beforehand.
	sh("tar", "-C", filepath.Join(lower, "usr"), "-cf", filepath.Join(*dir, "share.tar"), "share")
	unix.Sync()

	results := map[string]map[string][]time.Duration{}
	for i := 0; i < *rounds; i++ {
		for j := range there {
			p := there[(i+j)%len(there)] // not always the same one first
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", i+1, *rounds, p.name)
			measure(p, lower, results)
		}
	}
	report(there, results)
	return nil
}

// installed returns the peers that are there.
func installed() (there []peer) {
	for _, p := range peers {
		if p.tool != "" {
			if _, err := exec.LookPath(p.tool); err != nil {
				fmt.Fprintf(os.Stderr, "%s is not installed: left out\n", p.name)
				continue
			}
		}
		there = append(there, p)
	}
	return there
}

// measure takes one peer through all rows.
func measure(p peer, lower string, results map[string]map[string][]time.Duration) {
	root, done := set(p, lower)
	fresh := true
	for _, r := range rows() {
		if r.fresh && !fresh {
			done()
			root, done = set(p, lower)
		}
		if results[r.name] == nil {
			results[r.name] = map[string][]time.Duration{}
		}
		results[r.name][p.name] = append(results[r.name][p.name], r.work(root))
		fresh = false
	}
	done()
}

// set mounts a peer with an empty upper, or copies the tree for native.
func set(p peer, lower string) (root string, done func()) {
	root, done = trySet(p, lower)
	if done == nil {
		work.Check(fmt.Errorf("%s cannot be mounted", p.name))
	}
	return root, done
}

// trySet is set; done is nil when the peer refuses.
func trySet(p peer, lower string) (root string, done func()) {
	at, err := os.MkdirTemp(*dir, "run-")
	work.Check(err)
	mnt := filepath.Join(at, "m")
	for _, d := range []string{"u", "w"} {
		work.Check(os.Mkdir(filepath.Join(at, d), 0755))
	}
	if p.mount == nil {
		sh("cp", "-a", lower, mnt)
		unix.Sync()
		return mnt, func() { work.Check(os.RemoveAll(at)) }
	}
	work.Check(os.Mkdir(mnt, 0755))
	if err := p.mount(lower, filepath.Join(at, "u"), filepath.Join(at, "w"), mnt); err != nil {
		fmt.Fprintf(os.Stderr, "mounting %s: %v\n", p.name, err)
		work.Check(os.RemoveAll(at))
		return "", nil
	}
	return mnt, func() {
		unmount(mnt)
		work.Check(os.RemoveAll(at))
		unix.Sync()
	}
}

func unmount(mnt string) {
	var err error
	for i := 0; i < 50; i++ {
		if err = unix.Unmount(mnt, 0); err == nil {
			time.Sleep(100 * time.Millisecond) // the daemon's end
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	work.Check(fmt.Errorf("unmounting %s: %w", mnt, err))
}

func timed(f func(root string)) func(string) time.Duration {
	return func(root string) time.Duration {
		start := time.Now()
		f(root)
		return time.Since(start)
	}
}

func cold(f func(root string)) func(string) time.Duration {
	return func(root string) time.Duration {
		unix.Sync()
		work.Check(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
		return timed(f)(root)
	}
}

// warm is the second of two runs: the first fills the caches.
func warm(f func(root string)) func(string) time.Duration {
	return func(root string) time.Duration {
		f(root)
		return timed(f)(root)
	}
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
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

func median(d []time.Duration) time.Duration {
	sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
	return d[len(d)/2]
}

func report(there []peer, results map[string]map[string][]time.Duration) {
	var uts syscall.Utsname
	work.Check(syscall.Uname(&uts))
	release := make([]byte, 0, len(uts.Release))
	for _, c := range uts.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	fmt.Printf("\nRatios to kernel overlay (seconds), medians of %d; kernel %s. Below 1 is faster.\n\n", *rounds, release)
	head, rule := "| work | overlay (s) |", "|---|---|"
	for _, p := range there {
		if p.name != "overlay" {
			head, rule = head+" "+p.name+" |", rule+"---|"
		}
	}
	fmt.Println(head + "\n" + rule)
	for _, r := range rows() {
		base := median(results[r.name]["overlay"])
		line := fmt.Sprintf("| %s | %.4f |", r.name, base.Seconds())
		for _, p := range there {
			if p.name != "overlay" {
				line += fmt.Sprintf(" %.2f |", median(results[r.name][p.name]).Seconds()/base.Seconds())
			}
		}
		fmt.Println(line)
	}
}
