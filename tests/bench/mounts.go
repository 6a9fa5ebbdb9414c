package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/bench/work"
)

// manyMounts says what mounts of the same lower cost each peer, in time and, when
// the root of each was listed, in memory of the machine.
func manyMounts(there []peer, lower string) {
	fmt.Printf("\n%d mounts of one lower, each with an upper of its own: milliseconds to mount one (the last tenth), and KiB that one more takes.\n\n", *mounts)
	fmt.Println("| peer | mount | last tenth | KiB each |\n|---|---|---|---|")
	for _, p := range there {
		if p.mount == nil || p.user != 0 || strings.Contains(p.name, ",") {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s\n", p.name)
		before := available()
		var took []time.Duration
		var undo []func()
		for range *mounts {
			start := time.Now()
			root, done := trySet(p, lower)
			if done == nil {
				break
			}
			took = append(took, time.Since(start))
			undo = append(undo, done)
			_, err := os.ReadDir(filepath.Join(root, "."))
			work.Check(err)
		}
		used := before - available()
		if n := len(took); n > 0 {
			fmt.Printf("| %s | %.1f | %.1f | %d |\n", p.name, mean(took), mean(took[n-max(1, n/10):]), used/n)
		}
		for _, done := range undo {
			done()
		}
	}
}

func mean(d []time.Duration) float64 {
	var sum time.Duration
	for _, t := range d {
		sum += t
	}
	return sum.Seconds() * 1000 / float64(len(d))
}

// available is how much memory is, in KiB, with nothing in the page cache.
func available() int {
	unix.Sync()
	work.Check(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	text, err := os.ReadFile("/proc/meminfo")
	work.Check(err)
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
			n, err := strconv.Atoi(f[1])
			work.Check(err)
			return n
		}
	}
	return 0
}
