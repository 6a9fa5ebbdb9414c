package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/layerfs/layerfs/tests/bench/work"
)

var (
	dir     = flag.String("dir", "", "an empty directory on a fresh file system")
	layerfs = flag.String("layerfs", "bin/layerfs", "the program")
	rounds  = flag.Int("rounds", 3, "rounds; the median counts")
	short   = flag.Bool("short", false, "little data, one round")
	only    = flag.String("only", "", "only rows whose names contain this; the second table comes always")
)

// Sizes of the work in MiB; -short makes them smaller.
var (
	volumeSize = 2048
	bigIO      = 512
	smallIO    = 64
	flushIO    = 8
	depth      = 100
	snapshots  = 1000
)

func main() {
	flag.Parse()
	if *short {
		*rounds, volumeSize, bigIO, smallIO, flushIO, depth, snapshots = 1, 256, 64, 8, 1, 20, 20
	}
	work.Main(bench)
}

func run(name string, args ...string) string {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		work.Check(fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out))
	}
	return string(out)
}

// store is a way of keeping volumes. A volume is prepared, served, and
// removed again.
type store interface {
	create(name string, mib int)
	fill(name string) // writes all of it
	snapshot(of, name string)
	serve(name string) (uri string, stop func())
	remove(name string)
}

// background starts a server and returns what ends it.
func background(name string, args ...string) (stop func()) {
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	work.Check(cmd.Start())
	return func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
}

func awaitSocket(path string) {
	for range 500 {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	work.Check(fmt.Errorf("nobody listens on %s", path))
}

func uri(socket, name string) string { return "nbd+unix:///" + name + "?socket=" + socket }

// thin is layerfs: one pool, one server for all its devices.
type thin struct{ pool, socket string }

func newThin() thin {
	t := thin{filepath.Join(*dir, "pool"), filepath.Join(*dir, "pool.sock")}
	run(*layerfs, "pool", "create", t.pool, "--data-size", "64G")
	return t
}

func (t thin) create(name string, mib int) {
	run(*layerfs, "thin", "create", t.pool, name, "--size", fmt.Sprint(mib, "M"))
}
func (t thin) fill(name string)         { fillBy(t, name) }
func (t thin) snapshot(of, name string) { run(*layerfs, "thin", "snap", t.pool, of, name) }
func (t thin) remove(name string)       { run(*layerfs, "thin", "rm", t.pool, name) }

func (t thin) serve(name string) (string, func()) {
	_ = os.Remove(t.socket)
	stop := background(*layerfs, "pool", "serve", t.pool, "--nbd", "unix:"+t.socket)
	awaitSocket(t.socket)
	return uri(t.socket, name), stop
}

// qcow2 is a file per volume; a snapshot is a file that is backed by another.
type qcow2 struct{ dir string }

func newQcow2() qcow2 {
	q := qcow2{filepath.Join(*dir, "qcow2")}
	work.Check(os.Mkdir(q.dir, 0o755))
	return q
}

func (q qcow2) path(name string) string { return filepath.Join(q.dir, name) }

func (q qcow2) create(name string, mib int) {
	run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", q.path(name), fmt.Sprint(mib, "M"))
}
func (q qcow2) fill(name string) { fillBy(q, name) }
func (q qcow2) snapshot(of, name string) {
	run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", "-b", q.path(of), "-F", "qcow2", q.path(name))
}
func (q qcow2) remove(name string) { work.Check(os.Remove(q.path(name))) }

func (q qcow2) serve(name string) (string, func()) {
	socket := q.path(name) + ".sock"
	stop := background("qemu-nbd", "-f", "qcow2", "-k", socket, "-t", "-x", name, "--cache=writeback", "--discard=unmap", q.path(name))
	awaitSocket(socket)
	return uri(socket, name), stop
}

// fillBy writes a whole volume through its server.
func fillBy(s store, name string) {
	u, stop := s.serve(name)
	defer stop()
	fio(u, "--rw=write", "--bs=1M", "--size=100%", "--end_fsync=1")
}

// fio runs a job and returns operations per second.
func fio(uri string, args ...string) float64 {
	out := run("fio", append([]string{"--name=x", "--ioengine=nbd", "--uri=" + uri, "--output-format=json", "--randrepeat=1"}, args...)...)
	var report struct {
		Jobs []struct {
			Error       int
			Read, Write struct{ IOPS float64 }
		}
	}
	work.Check(json.Unmarshal([]byte(out[max(0, strings.IndexByte(out, '{')):]), &report))
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		work.Check(fmt.Errorf("fio %v: %s", args, out))
	}
	return report.Jobs[0].Read.IOPS + report.Jobs[0].Write.IOPS
}

// row is one piece of work: operations per second on a volume of its own.
type row struct {
	name string
	work func(s store, name string) float64
}

func size(mib int) string { return fmt.Sprintf("--io_size=%dM", mib) }

// onFresh runs fio on an empty volume.
func onFresh(args ...string) func(store, string) float64 {
	return func(s store, name string) float64 {
		s.create(name, volumeSize)
		u, stop := s.serve(name)
		defer stop()
		return fio(u, args...)
	}
}

// onFull runs fio on a volume that was written whole.
func onFull(args ...string) func(store, string) float64 {
	return func(s store, name string) float64 {
		s.create(name, volumeSize)
		s.fill(name)
		u, stop := s.serve(name)
		defer stop()
		return fio(u, args...)
	}
}

// onSnapshot runs fio on a snapshot, at the given depth, of a full volume.
func onSnapshot(depth int, args ...string) func(store, string) float64 {
	return func(s store, name string) float64 {
		s.create(name, volumeSize)
		s.fill(name)
		last := name
		for i := range depth {
			next := fmt.Sprintf("%s-%d", name, i)
			s.snapshot(last, next)
			last = next
		}
		u, stop := s.serve(last)
		defer stop()
		return fio(u, args...)
	}
}

// manySnapshots makes and removes snapshots of a 10 GiB volume with the
// command line, per second.
func manySnapshots(s store, name string) float64 {
	s.create(name, 10<<10)
	u, stop := s.serve(name)
	fio(u, "--rw=randwrite", "--bs=64k", "--size=100%", size(bigIO), "--iodepth=16", "--end_fsync=1")
	stop()
	start := time.Now()
	for i := range snapshots {
		s.snapshot(name, fmt.Sprintf("%s-%d", name, i))
	}
	for i := range snapshots {
		s.remove(fmt.Sprintf("%s-%d", name, i))
	}
	return float64(snapshots) / time.Since(start).Seconds()
}

func rows() []row {
	return []row{
		{"first write, sequential 64K", onFresh("--rw=write", "--bs=64k", size(bigIO))},
		{"first write, random 4K", onFresh("--rw=randwrite", "--bs=4k", size(smallIO))},
		{"sequential write 64K", onFull("--rw=write", "--bs=64k", size(bigIO))},
		{"sequential read 64K", onFull("--rw=read", "--bs=64k", size(bigIO))},
		{"sequential read 4K", onFull("--rw=read", "--bs=4k", size(smallIO))},
		{"random read 4K", onFull("--rw=randread", "--bs=4k", size(smallIO))},
		{"random read 4K, 16 at a time", onFull("--rw=randread", "--bs=4k", size(smallIO), "--iodepth=16")},
		{"random write 4K", onFull("--rw=randwrite", "--bs=4k", size(smallIO))},
		{"random write 4K, 16 at a time", onFull("--rw=randwrite", "--bs=4k", size(smallIO), "--iodepth=16")},
		{"random write 4K, flush each", onFull("--rw=randwrite", "--bs=4k", size(flushIO), "--fsync=1")},
		{"first write, random 4K, flush each", onFresh("--rw=randwrite", "--bs=4k", size(flushIO), "--fsync=1")},
		{"first 4K write to a snapshot, random", onSnapshot(1, "--rw=randwrite", "--bs=4k", size(smallIO))},
		{"random read 4K, snapshot of depth 1", onSnapshot(1, "--rw=randread", "--bs=4k", size(smallIO))},
		{fmt.Sprintf("random read 4K, snapshot of depth %d", depth), onSnapshot(depth, "--rw=randread", "--bs=4k", size(smallIO))},
		{fmt.Sprintf("make and remove %d snapshots of 10 GiB (each/s)", snapshots), manySnapshots},
	}
}

func bench() error {
	fmt.Println("| work | layerfs (1/s) | qcow2 (1/s) | layerfs / qcow2 |")
	fmt.Println("|---|---|---|---|")
	for _, r := range rows() {
		if !strings.Contains(r.name, *only) {
			continue
		}
		var ours, theirs []float64
		for range *rounds {
			ours = append(ours, once(r, "ours", func() store { return newThin() }))
			theirs = append(theirs, once(r, "theirs", func() store { return newQcow2() }))
		}
		fmt.Printf("| %s | %.0f | %.0f | %.2f |\n", r.name, median(ours), median(theirs), median(ours)/median(theirs))
	}
	return librarySnapshots()
}

// once does a row in a store of its own and cleans up behind it.
func once(r row, name string, make func() store) float64 {
	defer func() {
		_ = os.RemoveAll(filepath.Join(*dir, "qcow2"))
		// The pool's process ends a moment after its last user.
		time.Sleep(400 * time.Millisecond)
		_ = os.RemoveAll(filepath.Join(*dir, "pool"))
		syscall.Sync()
	}()
	return r.work(make(), name)
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
