package thinxml

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/internal/errs"
)

// collector keeps everything, so that it can be compared and written again.
type collector struct {
	sb      Superblock
	devices []Device
	maps    map[uint32][]Range
	ended   int
}

func (c *collector) Superblock(sb Superblock) error {
	c.sb, c.maps = sb, map[uint32][]Range{}
	return nil
}

func (c *collector) Device(d Device) error {
	c.devices = append(c.devices, d)
	return nil
}

func (c *collector) Map(r Range) error {
	id := c.devices[len(c.devices)-1].ID
	c.maps[id] = append(c.maps[id], r)
	return nil
}

func (c *collector) EndDevice() error { c.ended++; return nil }

func collect(in string) (*collector, error) {
	c := &collector{}
	err := Read(strings.NewReader(in), c)
	return c, err
}

// normal returns c as a Writer's output shows it: devices in order, runs merged.
func (c *collector) normal() *collector {
	n := &collector{sb: c.sb, devices: slices.Clone(c.devices), maps: map[uint32][]Range{}, ended: c.ended}
	slices.SortFunc(n.devices, func(a, b Device) int { return cmp.Compare(a.ID, b.ID) })
	for id, ranges := range c.maps {
		var merged []Range
		for _, r := range ranges {
			if last := len(merged) - 1; last >= 0 && r.continues(merged[last]) {
				merged[last].Length += r.Length
			} else {
				merged = append(merged, r)
			}
		}
		n.maps[id] = merged
	}
	return n
}

// write writes c, each range cut into pieces of at most piece blocks.
func (c *collector) write(w io.Writer, piece uint64) error {
	x, err := NewWriter(w, c.sb)
	if err != nil {
		return err
	}
	for _, d := range c.devices {
		if err := x.Device(d); err != nil {
			return err
		}
		for _, r := range c.maps[d.ID] {
			for done := uint64(0); done < r.Length; done += piece {
				if err := x.Map(Range{r.Origin + done, r.Data + done, min(piece, r.Length-done), r.Time}); err != nil {
					return err
				}
			}
		}
	}
	return x.Close()
}

// example is §3.2 of the reference, with runs.
const example = `<superblock uuid="" time="2" transaction="3" flags="0" version="2" data_block_size="128" nr_data_blocks="1024">
  <device dev_id="0" mapped_blocks="6" transaction="0" creation_time="0" snap_time="1">
    <single_mapping origin_block="0" data_block="663" time="0"/>
    <range_mapping origin_begin="1" data_begin="970" length="3" time="0"/>
    <single_mapping origin_block="4" data_block="973" time="1"/>
    <single_mapping origin_block="130" data_block="49" time="0"/>
  </device>
  <device dev_id="7" mapped_blocks="0" transaction="2" creation_time="1" snap_time="2">
  </device>
</superblock>
`

func TestRoundTrip(t *testing.T) {
	c, err := collect(example)
	require.NoError(t, err)
	require.Equal(t, Superblock{Time: 2, Transaction: 3, Version: 2, DataBlockSize: 128, DataBlocks: 1024}, c.sb)
	require.Equal(t, []Device{{0, 6, 0, 0, 1}, {7, 0, 2, 1, 2}}, c.devices)
	require.Equal(t, []Range{{0, 663, 1, 0}, {1, 970, 3, 0}, {4, 973, 1, 1}, {130, 49, 1, 0}}, c.maps[0])
	require.Equal(t, 2, c.ended)
	for _, piece := range []uint64{1, 2, math.MaxUint64} {
		var out bytes.Buffer
		require.NoError(t, c.write(&out, piece))
		require.Equal(t, example, out.String())
	}
}

// However the input comes, the result is the same: tags, comments and texts
// across the border of a read, and of the buffer.
func TestReadInPieces(t *testing.T) {
	in := strings.Replace(example, "    <single", strings.Repeat("<!-- -- > --->text\n", bufSize/17)+"<single", 1)
	want, err := collect(example)
	require.NoError(t, err)
	for _, r := range []io.Reader{
		iotest.OneByteReader(strings.NewReader(in)), iotest.HalfReader(strings.NewReader(in)),
		iotest.DataErrReader(strings.NewReader(in)), &stutter{r: strings.NewReader(in)},
	} {
		got := &collector{}
		require.NoError(t, Read(r, got))
		require.Equal(t, want, got)
	}
}

// stutter returns nothing every other time.
type stutter struct {
	r     io.Reader
	quiet bool
}

func (s *stutter) Read(p []byte) (int, error) {
	if s.quiet = !s.quiet; s.quiet {
		return 0, nil
	}
	return s.r.Read(p)
}

const (
	head = `<superblock uuid="" time="5" transaction="3" data_block_size="128" nr_data_blocks="1024">`
	tail = `</superblock>`
)

func device(id, mapped int, inside string) string {
	return fmt.Sprintf(`<device dev_id="%d" mapped_blocks="%d" transaction="0" creation_time="0" snap_time="0">%s</device>`, id, mapped, inside)
}

func single(origin, data int) string {
	return fmt.Sprintf(`<single_mapping origin_block="%d" data_block="%d" time="0"/>`, origin, data)
}

func TestAccepted(t *testing.T) {
	for name, in := range map[string]string{
		"def and ref (thin_dump 1.x)": head + `<def name="3">` + single(0, 1) + single(1, 2) + `</def>` +
			device(1, 2, `<ref name="3"/>`) + device(2, 3, `<ref name="3"></ref>`+single(9, 9)) + tail,
		"declaration":               `<?xml version="1.0" encoding="UTF-8"?>` + "\n" + head + device(1, 1, single(0, 1)) + tail,
		"self-closed device":        head + `<device dev_id="1" mapped_blocks="0" transaction="0" creation_time="0" snap_time="0"/>` + tail,
		"mapping closed explicitly": head + device(1, 1, `<single_mapping origin_block="0" data_block="1" time="0"> <!-- x --> </single_mapping>`) + tail,
		"comments and text": "<!-- a -->\n" + head + "text &what; <!-- <device> -->" +
			device(1, 1, "x"+single(0, 1)+"]]>") + tail + "<!-- b -->\n",
		"other quotes, spaces, order": "<superblock\n\ttime = '5' uuid='>' data_block_size = \"128\"\r\n nr_data_blocks='1024' transaction='3' >" + tail + "\n",
		"metadata_snap":               strings.Replace(head, ` data_`, ` metadata_snap="64" data_`, 1) + tail,
		"no devices":                  strings.Replace(head, ">", "/>", 1),
		"flags and version 1":         strings.Replace(head, ` data_`, ` flags="1" version="1" data_`, 1) + tail,
		"devices out of order":        head + device(2, 0, "") + device(1, 0, "") + tail,
		"a data block twice":          head + device(1, 2, single(0, 1)+single(1, 1)) + tail,
		"the largest device id":       head + device(1<<24-1, 0, "") + tail,
		"the last data block":         head + device(1, 1, single(0, 1023)) + tail,
	} {
		t.Run(name, func(t *testing.T) {
			c, err := collect(in)
			require.NoError(t, err)
			require.Equal(t, uint64(3), c.sb.Transaction)
			require.Equal(t, len(c.devices), c.ended)
		})
	}
	c, err := collect(strings.Replace(head, ` data_`, ` flags="1" version="1" data_`, 1) + tail)
	require.NoError(t, err)
	require.Equal(t, uint32(NeedsCheck), c.sb.Flags)
	require.Equal(t, uint32(1), c.sb.Version)
	c, err = collect(head + `<def name="a b">` + single(0, 1) + single(1, 2) + single(5, 2) + `</def>` + device(3, 3, `<ref name='a b'/>`) + tail)
	require.NoError(t, err)
	require.Equal(t, uint32(Version), c.sb.Version)
	require.Equal(t, []Range{{0, 1, 2, 0}, {5, 2, 1, 0}}, c.maps[3])
}

// The table of input errors (reference §3.1) and everything else that is wrong.
func TestRefused(t *testing.T) {
	dev := func(inside string) string { return head + device(1, 1, inside) + tail }
	alter := func(old, new string) string {
		in := strings.Replace(dev(single(0, 1)), old, new, 1)
		require.NotEqual(t, dev(single(0, 1)), in)
		return in
	}
	for name, c := range map[string]struct{ in, want string }{
		"missing uuid":           {alter(` uuid=""`, ``), "line 1: <superblock>: attribute uuid is missing"},
		"64 sectors":             {alter(`size="128"`, `size="64"`), "data_block_size 64: must be a multiple of 128 sectors from 128 to 2097152"},
		"192 sectors":            {alter(`size="128"`, `size="192"`), "data_block_size 192"},
		"0 sectors":              {alter(`size="128"`, `size="0"`), "data_block_size 0"},
		"blocks too large":       {alter(`size="128"`, `size="2097280"`), "data_block_size 2097280"},
		"unsorted":               {dev(single(5, 1) + single(4, 2)), "origin block 4 after 5: mappings must be in ascending order"},
		"duplicate origin":       {dev(single(5, 1) + "\n" + single(5, 2)), "line 2: origin block 5 after 5"},
		"overlap":                {dev(`<range_mapping origin_begin="0" data_begin="0" length="6" time="0"/>` + single(5, 9)), "origin block 5 after 5"},
		"mapped_blocks too high": {head + device(4, 2, single(0, 1)) + tail, "device 4: mapped_blocks is 2, but 1 blocks are mapped"},
		"mapped_blocks too low":  {head + device(4, 0, single(0, 1)) + tail, "device 4: mapped_blocks is 0, but 1 blocks are mapped"},
		"device id 2^24":         {alter(`dev_id="1"`, `dev_id="16777216"`), "dev_id 16777216: must be at most 16777215"},
		"device id 2^32":         {alter(`dev_id="1"`, `dev_id="4294967296"`), `dev_id is "4294967296": must be a number from 0 to 4294967295`},
		"mapping after the pool": {alter(`time="0"/>`, `time="6"/>`), "time 6 is later than the pool's, 5"},
		"device after the pool":  {alter(`creation_time="0"`, `creation_time="6"`), "device 1: time 6 is later"},
		"snapshot after it":      {alter(`snap_time="0"`, `snap_time="7"`), "device 1: time 7 is later"},
		"past nr_data_blocks":    {dev(single(0, 1024)), "data blocks 1024+1: the pool has only 1024"},
		"half past it":           {dev(`<range_mapping origin_begin="0" data_begin="1020" length="5" time="0"/>`), "data blocks 1020+5"},
		"duplicate device":       {head + device(3, 0, "") + device(3, 0, "") + tail, "device 3 twice"},
		"unknown attribute":      {alter(`dev_id`, `color="red" dev_id`), `<device>: unknown attribute "color"`},
		"attribute twice":        {alter(`dev_id`, `dev_id="1" dev_id`), "attribute dev_id twice"},
		"absent output":          {"", "the input is empty"},
		"only space":             {"\n\n ", "line 3: no <superblock>"},

		"version 0":             {alter(` data_`, ` version="0" data_`), "version 0: only 1 and 2"},
		"version 3":             {alter(` data_`, ` version="3" data_`), "version 3"},
		"negative":              {alter(`data_block="1"`, `data_block="-1"`), `data_block is "-1": must be a number`},
		"empty number":          {alter(`data_block="1"`, `data_block=""`), `data_block is ""`},
		"2^64":                  {alter(`data_block="1"`, `data_block="18446744073709551616"`), "must be a number from 0 to 18446744073709551615"},
		"range without length":  {dev(`<range_mapping origin_begin="0" data_begin="0" length="0" time="0"/>`), "a mapping of no blocks"},
		"wraps around":          {dev(`<range_mapping origin_begin="18446744073709551615" data_begin="0" length="2" time="0"/>`), "a device has at most 140737488355327 blocks"},
		"data wraps around":     {dev(`<range_mapping origin_begin="0" data_begin="2" length="18446744073709551615" time="0"/>`), "the pool has only 1024"},
		"pool too large":        {alter(`"1024"`, `"1099511627777"`), "a pool has at most 1099511627776 blocks"},
		"pool beyond 2^63":      {strings.Replace(alter(`"1024"`, `"8589934593"`), `"128"`, `"2097152"`, 1), "at most 8589934591 blocks of 2097152 sectors"},
		"long uuid":             {alter(`uuid=""`, `uuid="`+strings.Repeat("x", 65)+`"`), "uuid has 65 bytes: must be at most 64"},
		"uuid not ASCII":        {alter(`uuid=""`, `uuid="ü"`), "only printable ASCII"},
		"entity":                {alter(`uuid=""`, `uuid="&a;"`), `uuid "&a;": '&' is not allowed`},
		"unknown element":       {dev("\n<map/>"), "line 2: unknown element <map> inside <device>"},
		"misplaced element":     {head + single(0, 1) + tail, "<single_mapping> inside <superblock>, where it has no place"},
		"device in a device":    {dev(device(2, 0, "")), "<device> inside <device>"},
		"inside a mapping":      {dev(`<single_mapping origin_block="0" data_block="1" time="0">` + single(1, 2) + `</single_mapping>`), "<single_mapping> inside <single_mapping>"},
		"ref in a def":          {head + `<def name="a"></def><def name="b"><ref name="a"/></def>` + tail, "<ref> inside <def>"},
		"unknown ref":           {dev(`<ref name="a"/>`), `<ref name="a">: no <def> of that name comes before it`},
		"def twice":             {head + `<def name="a"/><def name="a"/>` + tail, `<def name="a"> twice`},
		"ref out of order":      {head + `<def name="a">` + single(3, 3) + `</def>` + device(1, 1, single(4, 4)+`<ref name="a"/>`) + tail, `<ref name="a">: origin block 3 after 4`},
		"unsorted def":          {head + `<def name="a">` + single(3, 3) + single(2, 2) + `</def>` + tail, "origin block 2 after 3"},
		"two superblocks":       {head + tail + head + tail, "<superblock> after the end of <superblock>"},
		"text behind":           {head + tail + "\nx", "line 2: text outside of <superblock>"},
		"text before":           {"dump:\n" + head + tail, "line 1: text outside of <superblock>"},
		"other root":            {"<html>", "the input begins with <html>: must be <superblock>"},
		"closing root":          {"</superblock>", "the input begins with <superblock>"},
		"wrong end":             {head + "</device>", "</device> inside <superblock>"},
		"end with attribute":    {head + "</superblock a='1'>", "</superblock> with attributes"},
		"no quotes":             {alter(`dev_id="1"`, `dev_id=1`), `the value of attribute "dev_id" is not in quotes`},
		"no value":              {alter(`dev_id="1"`, `dev_id`), `unknown attribute "dev_id mapped_blocks"`},
		"no equals sign":        {dev(`<ref name/>`), `"name" is not of the form name="value"`},
		"no space":              {alter(`dev_id="1" `, `dev_id="1"`), `no space after attribute "dev_id"`},
		"empty tag":             {dev("<>"), "< without the name of an element"},
		"DOCTYPE":               {`<!DOCTYPE a [<!ENTITY x "y">]>` + head + tail, "DOCTYPE and CDATA are not part of the format"},
		"CDATA":                 {dev("<![CDATA[x]]>"), "DOCTYPE and CDATA"},
		"instruction":           {dev("<?php?>"), "<? begins neither a declaration"},
		"late declaration":      {" <?xml version='1.0'?>" + head + tail, "<? begins neither a declaration"},
		"UTF-16":                {"\xff\xfe<\x00s\x00", "text outside of <superblock>"},
		"no end of the comment": {head + "\n<!-- a --", "line 2: this comment has no end"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := collect(c.in)
			require.ErrorContains(t, err, c.want)
			require.Equal(t, errs.Corrupt, errs.Of(err))
			require.Contains(t, err.Error(), "line ")
		})
	}
}

func TestTruncated(t *testing.T) {
	whole := strings.TrimSpace(example)
	for n := range len(whole) {
		_, err := collect(whole[:n])
		require.Error(t, err, "%d bytes", n)
		require.Equal(t, errs.Corrupt, errs.Of(err))
		if n > 0 {
			require.ErrorContains(t, err, "truncated")
		}
	}
}

func TestReaderFails(t *testing.T) {
	boom := errors.New("boom")
	for n := range len(example) {
		err := Read(io.MultiReader(strings.NewReader(example[:n]), iotest.ErrReader(boom)), &collector{})
		require.Equal(t, boom, err, "after %d bytes", n)
	}
	require.Equal(t, io.ErrNoProgress, Read(silent{}, &collector{}))
}

type silent struct{}

func (silent) Read([]byte) (int, error) { return 0, nil }

// refuser fails at its nth call.
type refuser struct{ left int }

var errRefused = errors.New("refused")

func (r *refuser) step() error {
	if r.left--; r.left < 0 {
		return errRefused
	}
	return nil
}
func (r *refuser) Superblock(Superblock) error { return r.step() }
func (r *refuser) Device(Device) error         { return r.step() }
func (r *refuser) Map(Range) error             { return r.step() }
func (r *refuser) EndDevice() error            { return r.step() }

func TestVisitorFails(t *testing.T) {
	in := strings.Replace(example, "  <device", `<def name="a"><single_mapping origin_block="9" data_block="9" time="0"/></def><device dev_id="1" mapped_blocks="1" transaction="0" creation_time="0" snap_time="0"><ref name="a"/></device><device`, 1)
	const calls = 1 + 3 + 6 + 2
	for n := range calls {
		require.Equal(t, errRefused, Read(strings.NewReader(in), &refuser{n}), "call %d", n)
	}
	require.NoError(t, Read(strings.NewReader(in), &refuser{calls}))
}

func TestWriterRefuses(t *testing.T) {
	sb := Superblock{Version: 2, DataBlockSize: 128, DataBlocks: 10, Time: 1}
	_, err := NewWriter(io.Discard, Superblock{Version: 2, DataBlockSize: 100})
	require.ErrorContains(t, err, "data_block_size 100")
	require.Equal(t, errs.Corrupt, errs.Of(err))
	_, err = NewWriter(io.Discard, Superblock{Version: 2, DataBlockSize: 128, UUID: `"`})
	require.ErrorContains(t, err, "uuid")

	for want, use := range map[string]func(*Writer) error{
		"device 3 after 3":      func(w *Writer) error { _ = w.Device(Device{ID: 3}); return w.Device(Device{ID: 3}) },
		"device 2 after 3":      func(w *Writer) error { _ = w.Device(Device{ID: 3}); return w.Device(Device{ID: 2}) },
		"dev_id 16777216":       func(w *Writer) error { return w.Device(Device{ID: 1 << 24}) },
		"time 2 is later":       func(w *Writer) error { return w.Device(Device{SnapTime: 2}) },
		"outside of any device": func(w *Writer) error { return w.Map(Range{Length: 1}) },
		"device 0: data blocks 10+1: the pool has only 10": func(w *Writer) error {
			_ = w.Device(Device{})
			return w.Map(Range{Data: 10, Length: 1})
		},
		"device 0: origin block 0 after 0": func(w *Writer) error {
			_ = w.Device(Device{})
			_ = w.Map(Range{Length: 1})
			return w.Map(Range{Length: 1, Data: 5})
		},
		"device 5: mapped_blocks is 1, but 0": func(w *Writer) error { _ = w.Device(Device{ID: 5, MappedBlocks: 1}); return w.Device(Device{ID: 6}) },
		"device 6: mapped_blocks is 2, but 0": func(w *Writer) error { _ = w.Device(Device{ID: 6, MappedBlocks: 2}); return w.Close() },
	} {
		w, err := NewWriter(io.Discard, sb)
		require.NoError(t, err)
		err = use(w)
		require.ErrorContains(t, err, want)
		require.Equal(t, err, w.Close(), "after an error it is unusable")
	}
	w, err := NewWriter(io.Discard, sb)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.Equal(t, errClosed, w.Device(Device{}))
	require.Equal(t, errClosed, w.Map(Range{Length: 1}))
	require.Equal(t, errClosed, w.Close())
}

// full takes room bytes.
type full struct{ room int }

func (f *full) Write(p []byte) (int, error) {
	n := min(len(p), f.room)
	f.room -= n
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

var errFull = errors.New("full")

// Whenever the output fails, the writer says so at the latest when it is closed.
func TestWriterOutputFails(t *testing.T) {
	c := &collector{sb: Superblock{Version: 2, DataBlockSize: 128, DataBlocks: 1 << 20}, maps: map[uint32][]Range{}}
	c.devices = []Device{{ID: 1, MappedBlocks: 3000}}
	for i := range uint64(3000) {
		c.maps[1] = append(c.maps[1], Range{Origin: 2 * i, Data: i, Length: 1})
	}
	var whole bytes.Buffer
	require.NoError(t, c.write(&whole, 1))
	require.Greater(t, whole.Len(), 2*bufSize)
	for room := 0; room < whole.Len(); room += 4099 {
		require.ErrorIs(t, c.write(&full{room}, 1), errFull, "after %d bytes", room)
	}
	require.NoError(t, c.write(&full{whole.Len()}, 1))
}
