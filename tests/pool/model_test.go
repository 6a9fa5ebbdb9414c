package pool

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/blockstore/client"
)

// content is what a device must show, and what its units may show besides.
type content struct {
	now   [devUnits]uint64
	maybe map[int][]uint64
}

func (d *content) set(u int, w uint64) {
	if d.maybe == nil {
		d.maybe = map[int][]uint64{}
	}
	d.maybe[u] = append(d.maybe[u], d.now[u])
	d.now[u] = w
}

func (d *content) clone() *content {
	c := &content{now: d.now, maybe: map[int][]uint64{}}
	for u, list := range d.maybe {
		c.maybe[u] = slices.Clone(list)
	}
	return c
}

// model follows what the writers say.
type model struct {
	devs  map[string]*content
	maybe map[string]*content // devices that may or may not exist
	acks  int
}

func newModel() *model {
	m := &model{devs: map[string]*content{}, maybe: map[string]*content{}}
	for i := range writers {
		m.devs[deviceName(i)] = &content{}
	}
	return m
}

// hear takes a line; acks are believed only while trust is set, because what
// returns while the power goes has acknowledged nothing.
func (m *model) hear(line string, trust bool) error {
	var dev int
	var verb string
	rest := strings.SplitN(line, " ", 3)
	if len(rest) < 2 {
		return fmt.Errorf("a line %q", line)
	}
	if _, err := fmt.Sscan(rest[0], &dev); err != nil {
		return err
	}
	verb = rest[1]
	d := m.devs[deviceName(dev)]
	arg := ""
	if len(rest) == 3 {
		arg = rest[2]
	}
	switch verb {
	case "w", "z":
		var from, n int
		var word uint64
		if _, err := fmt.Sscan(arg+" 0", &from, &n, &word); err != nil {
			return err
		}
		for i := range n {
			if verb == "z" {
				d.set(from+i, 0)
			} else {
				d.set(from+i, word+uint64(i))
			}
		}
	case "f":
		if trust {
			d.maybe = nil
			m.acks++
		}
	case "c":
		// What was written before is in the snapshot once it is there.
		m.maybe[arg] = &content{now: d.now}
	case "C":
		if trust {
			m.devs[arg] = m.maybe[arg]
			delete(m.maybe, arg)
			m.acks++
		}
	case "d":
		if made := m.devs[arg]; made != nil { // else nobody knows whether it was made
			m.maybe[arg] = made
			delete(m.devs, arg)
		}
	case "D":
		if trust {
			delete(m.maybe, arg)
			m.acks++
		}
	default:
		return fmt.Errorf("a line %q", line)
	}
	return nil
}

// verify reads everything and takes it for what is there from now on.
func (m *model) verify(t *testing.T, c *client.Client) {
	t.Helper()
	list, err := c.Devices()
	require.NoError(t, err)
	found := map[string]bool{}
	for _, info := range list {
		found[info.Name] = true
		if d := m.maybe[info.Name]; d != nil {
			m.devs[info.Name] = d
		}
		require.Contains(t, m.devs, info.Name, "a device that nobody made, or that was deleted")
	}
	m.maybe = map[string]*content{}
	for name, d := range m.devs {
		require.True(t, found[name], "device %s is gone", name)
		m.verifyDevice(t, c, name, d)
	}
}

func (m *model) verifyDevice(t *testing.T, c *client.Client, name string, d *content) {
	t.Helper()
	for off := int64(0); off < devUnits*unit; off += 1 << 20 {
		data, err := c.ReadAt(name, off, 1<<20)
		require.NoError(t, err)
		for i := 0; i < len(data); i += unit {
			u := (int(off) + i) / unit
			got := binary.LittleEndian.Uint64(data[i:])
			if !bytes.Equal(data[i:i+unit-8], data[i+8:i+unit]) {
				t.Fatalf("device %s unit %d is torn", name, u)
			}
			if got != d.now[u] && !slices.Contains(d.maybe[u], got) {
				t.Fatalf("device %s unit %d: %#x, want %#x or one of %#x", name, u, got, d.now[u], d.maybe[u])
			}
			d.now[u] = got
		}
	}
	d.maybe = nil
}
