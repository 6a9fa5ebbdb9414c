package pool

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/client"
)

const (
	unit     = 4096
	devUnits = 2048 // 8 MiB
	writers  = 3
)

// program is how pool processes are started.
func program(bin string) []string { return []string{bin, "pool-process"} }

// writer changes one device until it is killed. What it does it says first,
// one line each: "w UNIT COUNT WORD", "z UNIT COUNT", "f" when a flush has
// returned, "c SNAPSHOT" and "d SNAPSHOT" before it makes or deletes one, "C"
// and "D" after. Words are unique, so that nothing can pass for another.
type writer struct {
	*rand.Rand
	dev   int
	word  uint64
	snaps []string
	made  int
	out   func(format string, args ...any)
}

func deviceName(i int) string { return fmt.Sprint("dev", i) }

// runWriters is the writers' process: DIR BIN SEED GENERATION.
func runWriters(args []string) error {
	seed, _ := strconv.ParseUint(args[2], 10, 64)
	gen, _ := strconv.ParseUint(args[3], 10, 64)
	c, err := client.Open(args[0], program(args[1]))
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	errs := make([]error, writers)
	for i := range writers {
		v, err := c.Volume(deviceName(i), nil)
		if err != nil {
			return err
		}
		w := &writer{Rand: rand.New(rand.NewPCG(seed, uint64(i))), dev: i, word: uint64(i+1)<<56 | gen<<32}
		w.out = func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(os.Stdout, "%d "+format+"\n", append([]any{w.dev}, args...)...)
		}
		w.snaps = snapsOf(c, i)
		group.Go(func() { errs[i] = w.run(c, v) })
	}
	group.Wait()
	return fmt.Errorf("writers ended: %v", errs)
}

// snapsOf lists the snapshots that exist of a device.
func snapsOf(c *client.Client, dev int) (names []string) {
	list, err := c.Devices()
	if err != nil {
		return nil
	}
	for _, d := range list {
		if d.Parent == deviceName(dev) {
			names = append(names, d.Name)
		}
	}
	return names
}

func (w *writer) run(c *client.Client, v *client.Device) error {
	for {
		if err := w.step(c, v); err != nil {
			return err
		}
	}
}

func (w *writer) step(c *client.Client, v *client.Device) error {
	from := w.IntN(devUnits)
	n := min(1+w.IntN(24), devUnits-from)
	switch k := w.IntN(100); {
	case k < 70:
		return w.write(v, from, n)
	case k < 76:
		w.out("z %d %d", from, n)
		return v.Zero(int64(from)*unit, int64(n)*unit, true)
	case k < 94:
		err := v.Flush()
		if err == nil {
			w.out("f")
		}
		return err
	case k < 97 && len(w.snaps) < 4:
		return w.snapshot(c)
	case len(w.snaps) > 0:
		return w.remove(c)
	}
	return nil
}

func (w *writer) write(v *client.Device, from, n int) error {
	buf := make([]byte, n*unit)
	first := w.word + 1
	for i := range n {
		w.word++
		for k := 0; k < unit; k += 8 {
			binary.LittleEndian.PutUint64(buf[i*unit+k:], w.word)
		}
	}
	w.out("w %d %d %d", from, n, first)
	_, err := v.WriteAt(buf, int64(from)*unit)
	return err
}

func (w *writer) snapshot(c *client.Client) error {
	w.made++
	name := fmt.Sprintf("snap%d-%x-%d", w.dev, w.word>>32&0xffffff, w.made)
	w.out("c %s", name)
	if _, err := c.Create(blockstore.NewDevice{Name: name, Of: deviceName(w.dev)}); err != nil {
		return err
	}
	w.snaps = append(w.snaps, name)
	w.out("C %s", name)
	return nil
}

func (w *writer) remove(c *client.Client) error {
	name := w.snaps[0]
	w.snaps = w.snaps[1:]
	w.out("d %s", name)
	if err := c.Delete(name); err != nil {
		return err
	}
	w.out("D %s", name)
	return nil
}
