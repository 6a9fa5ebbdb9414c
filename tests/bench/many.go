package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/bench/work"
)

// manyBranches are the numbers of lowers that are compared.
var manyBranches = []int{1, 20, 120, 500}

// branches says what more branches cost each peer: those beyond the first have
// only a file of their own in their roots.
func branches(there []peer, lower string) {
	// Relative names: the kernel's options must fit into a page.
	at := filepath.Join(*dir, "br")
	work.Check(os.Mkdir(at, 0755))
	work.Check(os.Chdir(at))
	work.Check(os.Symlink(lower, "l"))
	var dirs []string
	for i := range manyBranches[len(manyBranches)-1] - 1 {
		d := fmt.Sprintf("%x", i)
		work.Check(os.Mkdir(d, 0755))
		work.Check(os.WriteFile(filepath.Join(d, "f"+d), nil, 0644))
		dirs = append(dirs, d)
	}
	names := paths(lower)
	fmt.Printf("\nSeconds with 1, 20, 120 and 500 branches, medians of %d; a lookup is stat of %d names, a third of them absent.\n\n", *rounds, len(names))
	fmt.Println("| work | peer | 1 | 20 | 120 | 500 |\n|---|---|---|---|---|---|")
	jobs := []row{
		{"walk cold", 0, cold, find},
		{"walk warm", 0, warm, find},
		{"lookup cold", 0, cold, func(r string) { lookup(r, names) }},
		{"lookup warm", 0, warm, func(r string) { lookup(r, names) }},
	}
	cells := map[string][]string{}
	for _, n := range manyBranches {
		fmt.Fprintf(os.Stderr, "%d branches\n", n)
		list := strings.Join(append(dirs[:n-1:n-1], "l"), ":")
		for _, p := range there {
			if p.mount == nil || p.user != 0 {
				continue
			}
			took := manyTimes(p, list, jobs)
			for _, j := range jobs {
				key := "| " + j.name + " | " + p.name + " |"
				cell := " not possible |"
				if took != nil {
					cell = fmt.Sprintf(" %.3f |", median(took[j.name]).Seconds())
				}
				cells[key] = append(cells[key], cell)
			}
		}
	}
	for _, j := range jobs {
		for _, p := range there {
			if key := "| " + j.name + " | " + p.name + " |"; p.mount != nil && p.user == 0 {
				fmt.Println(key + strings.Join(cells[key], ""))
			}
		}
	}
}

// tooLong is when one round of a peer is enough.
const tooLong = 30 * time.Second

// manyTimes does the jobs on a mount of the list of branches, nil when the peer
// cannot have so many.
func manyTimes(p peer, list string, jobs []row) map[string][]time.Duration {
	took := map[string][]time.Duration{}
	start := time.Now()
	for i := range *rounds {
		if i > 0 && time.Since(start) > tooLong {
			break
		}
		root, done := trySet(p, list)
		if done == nil {
			return nil
		}
		for _, j := range jobs {
			t, err := j.timed(root, 0)
			work.Check(err)
			took[j.name] = append(took[j.name], t)
		}
		done()
	}
	return took
}

// paths picks names of the tree, and for every second a neighbour that is absent.
func paths(root string) []string {
	var all, out []string
	work.Check(filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		all = append(all, strings.TrimPrefix(p, root))
		return err
	}))
	for i := 0; i < len(all); i += max(1, len(all)/4000) {
		if out = append(out, all[i]); i%2 == 0 {
			out = append(out, all[i]+".absent")
		}
	}
	return out
}

func lookup(root string, names []string) {
	var st unix.Stat_t
	for _, n := range names {
		_ = unix.Lstat(root+n, &st)
	}
}
