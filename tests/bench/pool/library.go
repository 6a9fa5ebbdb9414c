package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/client"
)

// librarySnapshots times single snapshots and deletions, and shows what a
// pool process costs in memory, with volumes of several sizes.
func librarySnapshots() error {
	fmt.Println("\n| volume | mapped blocks | make a snapshot (ms) | remove it (ms) | pool process (MiB) |")
	fmt.Println("|---|---|---|---|---|")
	for _, gib := range []int64{1, 16, 64} {
		if *short && gib > 1 {
			break
		}
		if err := librarySnapshot(gib); err != nil {
			return err
		}
	}
	return nil
}

func librarySnapshot(gib int64) error {
	pool := filepath.Join(*dir, "lib")
	if err := blockstore.Create(pool, blockstore.Options{DataSize: 80 << 30}); err != nil {
		return err
	}
	defer func() {
		time.Sleep(400 * time.Millisecond)
		_ = os.RemoveAll(pool)
	}()
	c, err := client.Open(pool, []string{*layerfs, "pool-process"})
	if err != nil {
		return err
	}
	if _, err := c.Create(blockstore.NewDevice{Name: "v", Size: gib << 30}); err != nil {
		return err
	}
	if err := touch(c, gib<<30); err != nil {
		return err
	}
	made, removed, err := timeSnapshots(c)
	if err != nil {
		return err
	}
	d, err := c.Device("v")
	if err != nil {
		return err
	}
	fmt.Printf("| %d GiB | %d | %.2f | %.2f | %d |\n", gib, d.Mapped, made, removed, residentMiB(pool))
	return c.Close()
}

// touch writes the first sector of every block.
func touch(c *client.Client, size int64) error {
	v, err := c.Volume("v", nil)
	if err != nil {
		return err
	}
	sector := make([]byte, 512)
	sector[0] = 1
	for off := int64(0); off < size; off += blockstore.MinBlockSize {
		if _, err := v.WriteAt(sector, off); err != nil {
			return errors.Join(err, v.Close())
		}
	}
	return v.Close()
}

// timeSnapshots returns the medians in milliseconds.
func timeSnapshots(c *client.Client) (made, removed float64, err error) {
	var m, r []float64
	for range 100 {
		start := time.Now()
		if _, err := c.Create(blockstore.NewDevice{Name: "s", Of: "v"}); err != nil {
			return 0, 0, err
		}
		middle := time.Now()
		if err := c.Delete("s"); err != nil {
			return 0, 0, err
		}
		m = append(m, middle.Sub(start).Seconds()*1000)
		r = append(r, time.Since(middle).Seconds()*1000)
	}
	return median(m), median(r), nil
}

// residentMiB finds the pool process by its arguments.
func residentMiB(pool string) int {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		line, _ := os.ReadFile(p)
		if strings.Contains(string(line), "pool-process\x00"+pool+"\x00") {
			var pages, resident int
			raw, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "statm"))
			if _, err := fmt.Sscan(string(raw), &pages, &resident); err == nil {
				return resident * os.Getpagesize() >> 20
			}
		}
	}
	return 0
}
