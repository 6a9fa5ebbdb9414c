package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/bench/work"
)

var (
	dir     = flag.String("dir", "", "a fresh file system with the tree in DIR/lower")
	layerfs = flag.String("layerfs", "bin/layerfs", "the program")
	rounds  = flag.Int("rounds", 5, "rounds; the median counts")
	short   = flag.Bool("short", false, "a small made-up tree, one round")
	many    = flag.Bool("branches", false, "compare numbers of branches instead of peers")
	mounts  = flag.Int("mounts", 0, "what so many mounts of the same lower cost, instead of comparing peers")
	chart   = flag.String("chart", "", "where to draw the ratios, an SVG file")
	do      = flag.String("do", "", "one row on -root: what an ordinary user's process does")
	root    = flag.String("root", "", "see -do")
)

func main() {
	flag.Parse()
	if *short {
		*rounds, bigSize, files, reads = 1, 64<<20, 500, 5000
	}
	work.Main(func() error {
		if *do != "" {
			return doRow(*do, *root)
		}
		return bench()
	})
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
	if *mounts > 0 {
		manyMounts(there, lower)
		return nil
	}
	writeRandom(filepath.Join(lower, bigName), bigSize)
	// An ordinary user can read all of a tree that is his.
	sh("cp", "-a", lower, lowerOf(nobody))
	sh("chown", "-R", strconv.Itoa(nobody), lowerOf(nobody))
	// What untar unpacks: a part of the tree, packed beforehand.
	sh("tar", "-C", filepath.Join(lower, "usr"), "-cf", filepath.Join(*dir, "share.tar"), "share")
	unix.Sync()

	results := map[string]map[string][]time.Duration{}
	for i := 0; i < *rounds; i++ {
		for j := range there {
			p := there[(i+j)%len(there)] // not always the same one first
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", i+1, *rounds, p.name)
			measure(p, results)
		}
	}
	report(there, results)
	return nil
}

// lowerOf is the tree that user works on.
func lowerOf(user uint32) string {
	if user == 0 {
		return filepath.Join(*dir, "lower")
	}
	return filepath.Join(*dir, "lower-of-user")
}

// measure takes one peer through all rows.
func measure(p peer, results map[string]map[string][]time.Duration) {
	root, done := set(p, lowerOf(p.user))
	unused := true
	for _, r := range rows() {
		if r.name == rowChown && p.user != 0 {
			continue
		}
		if r.how == fresh && !unused {
			done()
			root, done = set(p, lowerOf(p.user))
		}
		if results[r.name] == nil {
			results[r.name] = map[string][]time.Duration{}
		}
		unused = false
		took, err := r.timed(root, p.user)
		if err != nil && p.tool != "" { // a peer's row stays empty
			fmt.Fprintf(os.Stderr, "%s: %v\n", p.name, err)
			continue
		}
		work.Check(err)
		results[r.name][p.name] = append(results[r.name][p.name], took)
	}
	done()
}
