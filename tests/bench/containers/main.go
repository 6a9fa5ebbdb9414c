package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/bench/work"
)

var (
	dir     = flag.String("dir", "", "a fresh file system")
	btrfs   = flag.String("btrfs", "", "a fresh btrfs")
	tree    = flag.String("tree", "", "the directory that becomes the image")
	layerfs = flag.String("layerfs", "bin/layerfs", "the program")
	many    = flag.Int("containers", 1000, "how many")
	readers = flag.Int("readers", 10, "how many read the same file")
	size    = flag.Int64("size", 500, "its size in MiB")
	made    = flag.String("made", "", "only have these drivers create and remove containers")
)

// store is a store with one driver.
type store struct {
	driver, root string
	containers   int
}

// fewer is for the driver that copies the image for each container.
const fewer = 10

func main() {
	flag.Parse()
	work.Main(bench)
}

func bench() error {
	image := filepath.Join(*dir, "image.tar")
	work.Check(exec.Command("tar", "-C", *tree, "-cf", image, ".").Run())
	if *made != "" {
		onlyMade(strings.Fields(*made), image)
		return nil
	}
	stores := []store{
		{"overlay", filepath.Join(*dir, "overlay"), *many},
		{"union", filepath.Join(*dir, "union"), *many},
		{"btrfs", filepath.Join(*btrfs, "btrfs"), *many},
		{"thin", filepath.Join(*dir, "thin"), *many},
		{"vfs", filepath.Join(*dir, "vfs"), max(*many/100, min(*many, fewer))},
	}
	fmt.Printf("\nContainers of one image (%d MiB), one after the other: milliseconds for each, and what each takes.\n\n", fileSize(image)>>20)
	fmt.Println("| driver | containers | create | mount | write 4 KiB | umount | rm | sum | memory while mounted (KiB) | disk (KiB) |\n|---|---|---|---|---|---|---|---|---|---|")
	var tables []string
	for _, s := range stores {
		s.run("layer", "import", "image", image)
		tables = append(tables, s.lives())
	}
	printGrowth(tables)
	fmt.Printf("\n%d containers of one image read the same file of %d MiB, after the caches were dropped.\n\n", *readers, *size)
	fmt.Println("| driver | read from disk (MiB) | page cache (MiB) | seconds |\n|---|---|---|---|")
	big := filepath.Join(*dir, "big")
	work.Check(os.Mkdir(big, 0755))
	work.Check(exec.Command("sh", "-c", fmt.Sprintf("head -c %dM /dev/urandom > %s/file && tar -C %s -cf %s .", *size, big, big, image)).Run())
	work.Check(os.RemoveAll(big))
	for _, s := range stores {
		s.run("layer", "import", "big", image)
		s.share()
	}
	return nil
}

func (s store) flags() []string {
	flags := []string{"--root", s.root, "--driver", s.driver}
	if s.driver == "thin" || s.driver == "devicemapper" {
		flags = append(flags, "--storage-opt", "dm.basesize=2G", "--storage-opt", "dm.min_free_space=0")
	}
	return flags
}

// run runs a command on the store and returns its output.
func (s store) run(args ...string) string {
	cmd := exec.Command(*layerfs, append(s.flags(), args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	work.Check(err)
	return strings.TrimSpace(string(out))
}

func (s store) name(i int) string { return fmt.Sprintf("c%d", i) }

// took is how long something took for one container, in milliseconds: for all, for the
// first tenth and for the last.
type took struct{ all, first, last float64 }

// each does something to every container.
func (s store) each(do func(name string)) took {
	var ms []float64
	for i := range s.containers {
		start := time.Now()
		do(s.name(i))
		ms = append(ms, float64(time.Since(start).Microseconds())/1000)
	}
	tenth := max(len(ms)/10, 1)
	return took{mean(ms), mean(ms[:tenth]), mean(ms[len(ms)-tenth:])}
}

func mean(list []float64) float64 {
	sum := 0.0
	for _, v := range list {
		sum += v
	}
	return sum / float64(len(list))
}

// growth is a line of the table that printGrowth prints.
func (s store) growth(create, rm took) string {
	return fmt.Sprintf("| %s | %d | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f |", s.driver, s.containers,
		create.all, create.first, create.last, rm.all, rm.first, rm.last)
}

func printGrowth(lines []string) {
	fmt.Printf("\nWhat creating and removing a container costs when there are more and more: milliseconds for each, of all, of the first tenth and of the last.\n\n")
	fmt.Println("| driver | containers | create | first | last | rm | first | last |\n|---|---|---|---|---|---|---|---|")
	fmt.Println(strings.Join(lines, "\n"))
}

// onlyMade has each driver create and remove containers, nothing more.
func onlyMade(drivers []string, image string) {
	var lines []string
	for _, d := range drivers {
		s := store{d, filepath.Join(*dir, d), *many}
		s.run("layer", "import", "image", image)
		create, rm := s.each(s.create), s.each(s.remove)
		lines = append(lines, s.growth(create, rm))
		s.run("layer", "rm", "image")
	}
	printGrowth(lines)
}

func (s store) create(name string) { s.run("container", "create", "--from", "image", name) }
func (s store) remove(name string) { s.run("container", "rm", name) }

// lives has containers created, used and removed, and returns their line of growth.
func (s store) lives() string {
	fmt.Fprintf(os.Stderr, "%d containers on %s\n", s.containers, s.driver)
	at := map[string]string{}
	settle()
	free, memory := s.free(), s.memory()
	create := s.each(s.create)
	mount := s.each(func(n string) { at[n] = s.run("container", "mount", n) })
	write := s.each(func(n string) {
		work.Check(os.WriteFile(filepath.Join(at[n], "etc", "new"), make([]byte, 4096), 0644))
	})
	settle()
	disk, used := free-s.free(), s.memory()-memory
	umount := s.each(func(n string) { s.run("container", "umount", n) })
	rm := s.each(s.remove)
	fmt.Printf("| %s | %d | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %d | %d |\n", s.driver, s.containers,
		create.all, mount.all, write.all, umount.all, rm.all, create.all+mount.all+write.all+umount.all+rm.all,
		used>>10/int64(s.containers), disk>>10/int64(s.containers))
	s.left()
	return s.growth(create, rm)
}

// left makes sure that nothing is.
func (s store) left() {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	work.Check(err)
	if strings.Contains(string(mounts), s.root+"/") {
		work.Check(fmt.Errorf("mounts of %s are left", s.root))
	}
	entries, err := os.ReadDir(filepath.Join(s.root, s.driver))
	work.Check(err)
	if s.driver != "thin" && len(entries) > 2 { // the image, and the directory that is always there
		work.Check(fmt.Errorf("%d trees are left in %s", len(entries), s.root))
	}
}

func (s store) share() {
	s.containers = *readers
	at := map[string]string{}
	s.each(func(n string) { s.run("container", "create", "--from", "big", n) })
	s.each(func(n string) { at[n] = s.run("container", "mount", n) })
	settle()
	read, cached := s.readBytes(), meminfo("Cached")
	start := time.Now()
	s.each(func(n string) { work.Check(exec.Command("cat", filepath.Join(at[n], "file")).Run()) })
	took := time.Since(start)
	fmt.Printf("| %s | %d | %d | %.1f |\n", s.driver, (s.readBytes()-read)>>20, (meminfo("Cached")-cached)>>20, took.Seconds())
	s.each(func(n string) { s.run("container", "rm", "-f", n) })
}

// settle writes everything out and drops the caches.
func settle() {
	unix.Sync()
	work.Check(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	time.Sleep(100 * time.Millisecond)
}

// free is what the file system of the store has free, in bytes.
func (s store) free() int64 {
	var st unix.Statfs_t
	work.Check(unix.Statfs(filepath.Dir(s.root), &st))
	return int64(st.Bfree) * st.Bsize
}

// readBytes is what was read so far from the device that the store lies on.
func (s store) readBytes() int64 {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	work.Check(err)
	for _, line := range strings.Split(string(mounts), "\n") {
		f := strings.Fields(line)
		if len(f) < 10 || f[4] != filepath.Dir(s.root) {
			continue
		}
		source := f[len(f)-2]
		stat, err := os.ReadFile("/sys/class/block/" + filepath.Base(source) + "/stat")
		work.Check(err)
		sectors, err := strconv.ParseInt(strings.Fields(string(stat))[2], 10, 64)
		work.Check(err)
		return sectors * 512
	}
	work.Check(fmt.Errorf("%s is on no device of its own", s.root))
	return 0
}

// memory is what the kernel has allocated for itself and what the process has that
// serves the store's mounts, in bytes.
func (s store) memory() int64 {
	n := meminfo("Slab") + meminfo("KernelStack") + meminfo("PageTables") + meminfo("Percpu")
	list, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range list {
		args, _ := os.ReadFile(p)
		if strings.HasSuffix(string(args), "\x00mounts-process\x00"+filepath.Join(s.root, "run")+"\x00") {
			n += field(filepath.Join(filepath.Dir(p), "status"), "RssAnon")
		}
	}
	return n
}

func meminfo(name string) int64 { return field("/proc/meminfo", name) }

// field returns a field of a file like /proc/meminfo, in bytes.
func field(path, name string) int64 {
	data, err := os.ReadFile(path)
	work.Check(err)
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			work.Check(err)
			return n << 10
		}
	}
	return 0
}

func fileSize(path string) int64 {
	fi, err := os.Stat(path)
	work.Check(err)
	return fi.Size()
}
