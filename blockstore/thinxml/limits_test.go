package thinxml

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// endless repeats a text for ever, after a beginning.
type endless struct {
	head, text string
	at, read   int
}

func (e *endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if e.head != "" {
			c := copy(p[n:], e.head)
			n, e.head = n+c, e.head[c:]
			continue
		}
		c := copy(p[n:], e.text[e.at:])
		n, e.at = n+c, (e.at+c)%len(e.text)
	}
	e.read += n
	return n, nil
}

// What would never end is given up on early.
func TestHostile(t *testing.T) {
	for name, c := range map[string]struct{ head, text, want string }{
		"deep nesting":   {head, "<a>", "unknown element <a>"},
		"known nesting":  {"", head, "<superblock> inside <superblock>"},
		"huge attribute": {`<superblock uuid="`, "x", "a tag of more than 4096 bytes"},
		"huge name":      {"<", "superblock", "a tag of more than 4096 bytes"},
		"attributes":     {"<superblock", ` a="1"`, "a tag of more than 4096 bytes"},
		"one line":       {"", "x", "text outside"},
	} {
		t.Run(name, func(t *testing.T) {
			in := &endless{head: c.head, text: c.text}
			err := Read(in, &collector{})
			require.ErrorContains(t, err, c.want)
			require.Less(t, len(err.Error()), 200)
			require.LessOrEqual(t, in.read, 2*bufSize)
		})
	}
}

// counter forgets everything.
type counter struct{ maps, blocks uint64 }

func (c *counter) Superblock(Superblock) error { return nil }
func (c *counter) Device(Device) error         { return nil }
func (c *counter) Map(r Range) error           { c.maps++; c.blocks += r.Length; return nil }
func (c *counter) EndDevice() error            { return nil }

// The defs of a hostile input neither fill the memory nor, by many refs, keep
// the reader busy for ever.
func TestDefLimits(t *testing.T) {
	p := &parser{scanner: newScanner(strings.NewReader(`<def name="a">` + strings.Repeat(single(0, 0)+single(0, 0), 10) + `</def>`)), defs: map[string][]Range{}}
	p.sb = Superblock{DataBlockSize: 128, DataBlocks: 10}
	p.defBytes = maxDefMemory - defMemory
	tg, err := p.next(true)
	require.NoError(t, err)
	require.ErrorContains(t, p.def(tg), "the defs take more than 512 MiB")

	p = &parser{scanner: newScanner(strings.NewReader(`<ref name="a"/>`)), visitor: &counter{}, refRanges: maxExpanded,
		defs: map[string][]Range{"a": {{0, 0, 1, 0}}}}
	tg, err = p.next(true)
	require.NoError(t, err)
	require.ErrorContains(t, p.ref(tg, &progress{}), "all refs together stand for more than 1073741824 mappings")
}

// million returns a pool with n mappings that cannot be merged.
func million(n int) []byte {
	c := &collector{sb: Superblock{Version: 2, DataBlockSize: 128, DataBlocks: 1 << 30}, maps: map[uint32][]Range{}}
	c.devices = []Device{{ID: 1, MappedBlocks: uint64(n)}}
	for i := range uint64(n) {
		c.maps[1] = append(c.maps[1], Range{Origin: i, Data: i * 7919 % (1 << 30), Length: 1})
	}
	var out bytes.Buffer
	if err := c.write(&out, 1); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// Reading takes no memory for each mapping.
func TestReadAllocatesNothing(t *testing.T) {
	in := million(10000)
	allocs := testing.AllocsPerRun(5, func() {
		c := &counter{}
		if err := Read(bytes.NewReader(in), c); err != nil || c.maps != 10000 {
			t.Errorf("%d mappings, %v", c.maps, err)
		}
	})
	require.Less(t, allocs, 50.0)
}

func BenchmarkRead(b *testing.B) {
	in := million(1e6)
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		if err := Read(bytes.NewReader(in), &counter{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	for b.Loop() {
		w, _ := NewWriter(io.Discard, Superblock{Version: 2, DataBlockSize: 128, DataBlocks: 1 << 30})
		_ = w.Device(Device{MappedBlocks: 1e6})
		for i := range uint64(1e6) {
			_ = w.Map(Range{Origin: i, Data: i * 7919 % (1 << 30), Length: 1})
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
