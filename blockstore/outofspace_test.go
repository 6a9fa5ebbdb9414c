package blockstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
)

// These tests have the names of device-mapper-test-suite's cases for thin
// provisioning, and check what those check: here, of pools that are getting full.

func TestFillingPoolReturnsEnospc(t *testing.T) {
	r := newRig(t, 8, blockstore.Options{ErrorIfNoSpace: true})
	v := r.vol("thin-0")
	n, err := v.WriteAt(make([]byte, 10*block), 0)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Equal(t, 8*block, n, "what precedes the error is written")
	require.Equal(t, "out_of_data_space", r.p.Status().Mode)
}

func TestOutOfDataSpaceTimesOut(t *testing.T) {
	r := newRig(t, 2, blockstore.Options{NoSpaceTimeout: 300 * time.Millisecond})
	r.mustWrite("thin-0", 0, 2*block, 1)
	start := time.Now()
	require.ErrorIs(t, r.write("thin-0", 2*block, block, 1), unix.ENOSPC)
	require.GreaterOrEqual(t, time.Since(start), 300*time.Millisecond)
	require.True(t, r.p.Status().ErrorNoSpace, "the status shows that the pool gives errors now")
	start = time.Now()
	require.ErrorIs(t, r.write("thin-0", 2*block, block, 1), unix.ENOSPC)
	require.Less(t, time.Since(start), 200*time.Millisecond)
	require.NoError(t, r.p.Resize(4*block))
	require.False(t, r.p.Status().ErrorNoSpace)
	r.mustWrite("thin-0", 2*block, block, 1)
}

func TestOutOfDataSpaceErrorsImmediatelyIfRequested(t *testing.T) {
	r := newRig(t, 2, blockstore.Options{ErrorIfNoSpace: true})
	r.mustWrite("thin-0", 0, 2*block, 1)
	start := time.Now()
	require.ErrorIs(t, r.write("thin-0", 2*block, block, 1), unix.ENOSPC)
	require.Less(t, time.Since(start), time.Second)
}

func TestWaitingWriterIsInterruptible(t *testing.T) {
	r := newRig(t, 1, blockstore.Options{})
	r.mustWrite("thin-0", 0, block, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := r.vol("thin-0").WriteContext(ctx, make([]byte, block), block)
	require.ErrorIs(t, err, unix.EINTR)
}

func TestIOToProvisionedRegionWithOutOfDataSpace(t *testing.T) {
	r := newRig(t, 2, blockstore.Options{ErrorIfNoSpace: true})
	r.mustWrite("thin-0", 0, 2*block, 1)
	require.ErrorIs(t, r.write("thin-0", 2*block, block, 1), unix.ENOSPC)
	r.mustWrite("thin-0", 0, 2*block, 2)
	require.EqualValues(t, 2, r.word("thin-0", block))
	require.NoError(t, r.vol("thin-0").Flush())
	r.create("more", 1<<30) // messages go on
	r.snap("thin-0", "s")
	require.ErrorIs(t, r.write("thin-0", 0, block, 3), unix.ENOSPC, "shared now, so it needs a block")
}

func TestDiscardAfterOutOfSpace(t *testing.T) {
	r := newRig(t, 2, blockstore.Options{})
	r.mustWrite("thin-0", 0, 2*block, 1)
	done := make(chan error, 1)
	go func() { done <- r.write("thin-0", 5*block, block, 1) }()
	require.Eventually(t, func() bool { return r.p.Status().Waiters > 0 }, 5*time.Second, time.Millisecond)
	require.NoError(t, r.vol("thin-0").Discard(0, block), "a discard never queues behind a writer")
	select {
	case err := <-done:
		require.NoError(t, err, "freeing wakes the writer, which dm-thin does not do")
	case <-time.After(5 * time.Second):
		t.Fatal("the writer still waits")
	}
	require.Equal(t, "rw", r.p.Status().Mode)
}

func TestResizeIO(t *testing.T) {
	r := newRig(t, 2, blockstore.Options{})
	r.mustWrite("thin-0", 0, 2*block, 1)
	done := make(chan error, 1)
	go func() { done <- r.write("thin-0", 5*block, block, 1) }()
	require.Eventually(t, func() bool { return r.p.Status().Waiters > 0 }, 5*time.Second, time.Millisecond)
	require.NoError(t, r.p.Resize(4*block))
	require.NoError(t, <-done)
	require.Error(t, r.p.Resize(2*block), "a pool does not shrink")
}

func TestDeleteAfterOutOfSpace(t *testing.T) {
	r := newRig(t, 2, blockstore.Options{})
	r.create("big", 1<<30)
	r.mustWrite("big", 0, 2*block, 1)
	r.release("big")
	done := make(chan error, 1)
	v := r.vol("thin-0")
	go func() {
		_, err := v.WriteAt(make([]byte, block), 0)
		done <- err
	}()
	require.Eventually(t, func() bool { return r.p.Status().Waiters > 0 }, 5*time.Second, time.Millisecond)
	require.NoError(t, r.p.Message("delete 1"))
	require.NoError(t, <-done)
}

func TestLowWater(t *testing.T) {
	r := newRig(t, 10, blockstore.Options{LowWater: 3})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	require.NoError(t, r.p.Wait(ctx, blockstore.OKEvent))
	r.mustWrite("thin-0", 0, 6*block, 1)
	r.settle()
	require.False(t, r.p.Status().LowWater)
	heard := make(chan error, 1)
	go func() { heard <- r.p.Wait(ctx, blockstore.LowWaterEvent) }()
	r.mustWrite("thin-0", 6*block, block, 1)
	require.NoError(t, <-heard)
	require.NoError(t, r.vol("thin-0").Discard(0, 4*block))
	require.NoError(t, r.vol("thin-0").Flush())
	require.NoError(t, r.p.Wait(ctx, blockstore.OKEvent))
	require.Error(t, r.p.Wait(ctx, "dinner"))
}

func TestAutoextend(t *testing.T) {
	r := newRig(t, 10, blockstore.Options{AutoextendAt: 80, AutoextendBy: 20, MaxSize: 14 * block, ErrorIfNoSpace: true})
	r.mustWrite("thin-0", 0, 7*block, 1)
	require.EqualValues(t, 10, r.p.Status().Blocks)
	r.mustWrite("thin-0", 7*block, block, 1)
	require.Eventually(t, func() bool { return r.p.Status().Blocks == 12 }, 5*time.Second, time.Millisecond)
	r.mustWrite("thin-0", 8*block, 6*block, 1)
	require.EqualValues(t, 14, r.p.Status().Blocks, "the limit")
	require.ErrorIs(t, r.write("thin-0", 20*block, block, 1), unix.ENOSPC)
}

func TestMinFreeSpace(t *testing.T) {
	r := newRig(t, 10, blockstore.Options{MinFree: 50})
	r.mustWrite("thin-0", 0, 6*block, 1)
	_, err := r.p.CreateDevice(blockstore.NewDevice{Name: "x", Size: 1 << 30})
	require.ErrorContains(t, err, "Thin Pool has 4 free data blocks which is less than minimum required 5 free data blocks.")
	r.mustWrite("thin-0", 6*block, block, 1) // writing goes on
}

// A host whose disk is full is a full pool, not a dead one.
func TestHostFull(t *testing.T) {
	r := newRig(t, 16, blockstore.Options{ErrorIfNoSpace: true})
	r.mustWrite("thin-0", 0, block, 1)
	r.settle()
	r.m.SetFree(10 << 20)
	at := int64(0)
	next := func() error { at += block; return r.write("thin-0", at, block, 1) }
	require.Eventually(t, func() bool { return next() != nil }, 5*time.Second, 20*time.Millisecond)
	require.Less(t, at, 16*int64(block))
	require.Equal(t, "out_of_data_space", r.p.Status().Mode)
	r.mustWrite("thin-0", 0, block, 2)
	require.NoError(t, r.vol("thin-0").Flush())
	r.m.SetFree(1 << 40)
	require.Eventually(t, func() bool { return r.write("thin-0", 1<<29, block, 1) == nil }, 5*time.Second, 20*time.Millisecond)
}
