package thinxml

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/internal/errs"
)

// FuzzRead: nothing makes Read panic, every refusal says why, and whatever is
// accepted is read again unchanged from what Writer makes of it.
func FuzzRead(f *testing.F) {
	f.Add(example)
	f.Add(`<?xml version="1.0"?><!-- c -->` + head + `x<def name="a">` + single(0, 1) + single(1, 2) + `</def>` +
		device(1<<24-1, 3, `<ref name="a"/>`+`<range_mapping origin_begin='5' data_begin='5' length='1' time='5'></range_mapping>`) +
		device(0, 0, "") + tail)
	f.Add(strings.Replace(head, " data", ` flags="1" version="1" metadata_snap="7" data`, 1) + tail)
	f.Add(`<superblock uuid="a'b" time="4294967295" transaction="18446744073709551615" data_block_size="2097152" nr_data_blocks="8589934591">` +
		`<device dev_id="1" mapped_blocks="8589934591" transaction="0" creation_time="0" snap_time="0">` +
		`<range_mapping origin_begin="0" data_begin="0" length="8589934591" time="16777215"/></device></superblock>`)
	f.Fuzz(func(t *testing.T, in string) {
		c, err := collect(in)
		if err != nil {
			require.Equal(t, errs.Corrupt, errs.Of(err), "%v", err)
			require.Contains(t, err.Error(), "line ")
			return
		}
		want := c.normal()
		var once, twice bytes.Buffer
		require.NoError(t, want.write(&once, 1<<63))
		again, err := collect(once.String())
		require.NoError(t, err)
		require.Equal(t, want, again)
		require.NoError(t, again.write(&twice, 1<<63))
		require.Equal(t, once.String(), twice.String())
	})
}
