package client

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/wire"
)

// A flush makes an assignment and the unmapping after it durable, the pool frees the
// block and gives it to us anew, and only then the flush's answer is looked at.
func TestLateAnswerKeepsBlocksReservedAnew(t *testing.T) {
	var j journal
	j.init()
	j.reserve([]blockstore.Grant{{Block: 7}})
	e := &entry{kind: wire.Assign, id: 1, list: []blockstore.Assignment{{Virtual: 0, Data: 7}}}
	j.begin(e)
	require.NotContains(t, j.reserved, uint64(7), "the assignment tells the next process")
	j.reserve([]blockstore.Grant{{Block: 7}})
	j.answered(e, "first", 1)
	j.drop(e)
	require.Contains(t, j.reserved, uint64(7))
}

// A change that is on its way when a flush begins may come after the commit.
func TestFlushLeavesChangesOnTheirWay(t *testing.T) {
	var j journal
	j.init()
	made, sent := &entry{kind: wire.Unmap, id: 1}, &entry{kind: wire.Unmap, id: 1}
	j.begin(made)
	j.begin(sent)
	j.answered(made, "first", 1)
	require.Equal(t, []*entry{made}, j.of(1))
	j.outlived(nil)
	require.Equal(t, []*entry{made}, j.of(1), "it is to be made durable though no living process has heard of it")
}
