// Command blocks compares copy-up by blocks with what unions do otherwise, and a
// file that was copied up so with one that was copied in full, on one machine
// and in one run. See ../bench.sh.
package main

import (
	"flag"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/bench/work"
)

var (
	dir     = flag.String("dir", "", "a directory on the file system to measure on")
	layerfs = flag.String("layerfs", "bin/layerfs", "the program")
	rounds  = flag.Int("rounds", 3, "rounds; the median counts")
	short   = flag.Bool("short", false, "small files, one round")
)

// Sizes; -short makes them smaller.
var (
	bigSize = int64(1 << 30)
	big     = 4 // files of that size for chown
	ops     = 20000
)

const options = "lowerdir=%s,upperdir=%s,workdir=%s"

// union is one way of putting an upper over the lower.
type union struct {
	name, tool string
	mount      func(opts, mnt string) error
}

var unions = []union{
	{"layerfs, blocks", "", func(opts, mnt string) error { return run(*layerfs, "-o", opts+",copyup=block", mnt) }},
	{"layerfs, full", "", func(opts, mnt string) error { return run(*layerfs, "-o", opts+",copyup=full", mnt) }},
	{"overlay", "", func(opts, mnt string) error { return unix.Mount("overlay", mnt, "overlay", 0, opts) }},
	{"overlay, metacopy", "", func(opts, mnt string) error {
		return unix.Mount("overlay", mnt, "overlay", 0, opts+",metacopy=on,redirect_dir=on")
	}},
	{"fuse-overlayfs", "fuse-overlayfs", func(opts, mnt string) error { return run("fuse-overlayfs", "-o", opts, mnt) }},
}

func main() {
	flag.Parse()
	if *short {
		bigSize, *rounds, ops = 128<<20, 1, 4000
	}
	work.Main(bench)
}

func bench() error {
	lower := filepath.Join(*dir, "blocks-lower")
	work.Check(os.MkdirAll(lower, 0755))
	for i := range big {
		random(filepath.Join(lower, fmt.Sprint("big", i)), bigSize)
	}
	random(filepath.Join(lower, "warm"), 1<<20)
	unix.Sync()
	fmt.Printf("\nA lower file of %d MiB, seconds, medians of %d.\n\n| union | first 32 KiB written (open and write) | fsync after it | chown -R of %d such files |\n|---|---|---|---|\n",
		bigSize>>20, *rounds, big)
	for _, u := range unions {
		if u.tool != "" {
			if _, err := exec.LookPath(u.tool); err != nil {
				continue
			}
		}
		changes(u, lower)
	}
	after(lower)
	return os.RemoveAll(lower)
}

// changes measures what changes lower files.
func changes(u union, lower string) {
	var first, synced, owner []float64
	for range *rounds {
		mounted(u.mount, lower, func(mnt string) {
			touch(filepath.Join(mnt, "warm")) // the first file of a mount has its pool made
			unix.Sync()
			a, b := firstWrite(filepath.Join(mnt, "big0"))
			first, synced = append(first, a), append(synced, b)
		})
		mounted(u.mount, lower, func(mnt string) {
			start := time.Now()
			work.Check(run("chown", "-R", "12:34", mnt))
			owner = append(owner, time.Since(start).Seconds())
		})
	}
	fmt.Printf("| %s | %.4f | %.4f | %.3f |\n", u.name, median(first), median(synced), median(owner))
}

// firstWrite times the first 32 KiB that are written into a file, and the sync.
func firstWrite(path string) (write, sync float64) {
	start := time.Now()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	work.Check(err)
	defer f.Close()
	_, err = f.WriteAt(make([]byte, 32<<10), bigSize/2+4096)
	work.Check(err)
	write = time.Since(start).Seconds()
	start = time.Now()
	work.Check(f.Sync())
	return write, time.Since(start).Seconds()
}

// after compares a file that was copied up by blocks with a plain one.
func after(lower string) {
	fmt.Printf("\nThe same file copied up by blocks and in full, on one mount, MB/s or 1000 operations/s, medians of %d.\n\n| work | full | blocks | ratio |\n|---|---|---|---|\n", *rounds)
	for _, state := range []struct {
		name    string
		prepare func(path string)
	}{
		{"nothing written", func(string) {}},
		{"all rewritten in order", func(p string) { sequentialWrite(p) }},
	} {
		mounted(unions[0].mount, lower, func(mnt string) {
			blocks, full := filepath.Join(mnt, "big0"), filepath.Join(mnt, "full")
			work.Check(run("cp", filepath.Join(lower, "big1"), full))
			touch(blocks)
			state.prepare(blocks)
			for _, w := range []struct {
				name string
				work func(string) float64
			}{
				{"sequential read, cold", func(p string) float64 { drop(); return sequentialRead(p, 0) }},
				{"sequential read, direct", func(p string) float64 { return sequentialRead(p, unix.O_DIRECT) }},
				{"random 4 KiB reads, direct", randomRead},
				{"sequential write", sequentialWrite},
				{"random 4 KiB writes", randomWrite},
			} {
				var a, b []float64
				for range max(*rounds, 3) {
					a, b = append(a, w.work(full)), append(b, w.work(blocks))
				}
				fmt.Printf("| %s, %s | %.1f | %.1f | %.2f |\n", w.name, state.name, median(a), median(b), median(b)/median(a))
			}
		})
	}
}

// mounted calls use with a union of lower and an empty upper.
func mounted(mount func(opts, mnt string) error, lower string, use func(mnt string)) {
	at, err := os.MkdirTemp(*dir, "blocks-")
	work.Check(err)
	for _, d := range []string{"u", "w", "m"} {
		work.Check(os.Mkdir(filepath.Join(at, d), 0755))
	}
	mnt := filepath.Join(at, "m")
	work.Check(mount(fmt.Sprintf(options, lower, filepath.Join(at, "u"), filepath.Join(at, "w")), mnt))
	use(mnt)
	for i := 0; unix.Unmount(mnt, 0) != nil && i < 50; i++ {
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(500 * time.Millisecond) // the ends of daemon and pool process
	work.Check(os.RemoveAll(at))
	unix.Sync()
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func touch(path string) { work.Check(os.Chmod(path, 0600)) }

func drop() {
	unix.Sync()
	work.Check(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
}

func aligned(n int) []byte {
	buf, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	work.Check(err)
	return buf
}

func sequentialRead(path string, flags int) float64 {
	buf := aligned(1 << 20)
	defer unix.Munmap(buf)
	fd, err := unix.Open(path, unix.O_RDONLY|flags, 0)
	work.Check(err)
	defer unix.Close(fd)
	start, total := time.Now(), 0
	for {
		n, err := unix.Read(fd, buf)
		work.Check(err)
		if n == 0 {
			return float64(total) / time.Since(start).Seconds() / 1e6
		}
		total += n
	}
}

func randomRead(path string) float64 {
	return random4K(path, unix.O_RDONLY|unix.O_DIRECT, unix.Pread)
}

func randomWrite(path string) float64 { return random4K(path, unix.O_WRONLY, unix.Pwrite) }

// random4K returns thousands of operations a second, a sync at the end included.
func random4K(path string, flags int, op func(int, []byte, int64) (int, error)) float64 {
	buf := aligned(4096)
	defer unix.Munmap(buf)
	rnd := rand.New(rand.NewSource(1))
	fd, err := unix.Open(path, flags, 0)
	work.Check(err)
	defer unix.Close(fd)
	start := time.Now()
	for range ops {
		_, err := op(fd, buf, rnd.Int63n(bigSize/4096)*4096)
		work.Check(err)
	}
	work.Check(unix.Fsync(fd))
	return float64(ops) / time.Since(start).Seconds() / 1e3
}

func sequentialWrite(path string) float64 {
	buf := make([]byte, 1<<20)
	rand.New(rand.NewSource(2)).Read(buf)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	work.Check(err)
	defer f.Close()
	start := time.Now()
	for off := int64(0); off < bigSize; off += int64(len(buf)) {
		_, err := f.WriteAt(buf, off)
		work.Check(err)
	}
	work.Check(f.Sync())
	return float64(bigSize) / time.Since(start).Seconds() / 1e6
}

func random(path string, size int64) {
	f, err := os.Create(path)
	work.Check(err)
	defer f.Close()
	rnd := rand.New(rand.NewSource(3))
	buf := make([]byte, min(size, 1<<20))
	for n := int64(0); n < size; n += int64(len(buf)) {
		rnd.Read(buf)
		_, err := f.Write(buf)
		work.Check(err)
	}
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}
