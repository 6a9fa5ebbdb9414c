package blockstore_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/blockstore"
	"github.com/layerfs/layerfs/blockstore/volume"
)

// These tests have the names of device-mapper-test-suite's cases for thin
// provisioning, and check what those check.

func TestSizesThatDockerDocuments(t *testing.T) {
	r := newRig(t, 64, blockstore.Options{})
	r.mustWrite("thin-0", 0, 56<<10, 7)
	require.EqualValues(t, 1, r.used(), "56 KiB into an empty device take one block")
	r.mustWrite("thin-0", 0, 4*block, 7)
	require.EqualValues(t, 4, r.used())
	r.snap("thin-0", "s")
	require.EqualValues(t, 4, r.used(), "a snapshot takes none")
	r.mustWrite("s", 32<<10, 32<<10, 9)
	require.EqualValues(t, 5, r.used(), "32 KiB changed in a snapshot take one")
	require.EqualValues(t, 7, r.word("thin-0", 32<<10))
	require.EqualValues(t, 7, r.word("s", 0))
	require.EqualValues(t, 9, r.word("s", 32<<10))
}

func TestOneLookupAtAnyDepth(t *testing.T) {
	r := newRig(t, 256, blockstore.Options{})
	const at = 0x44f * block
	r.mustWrite("thin-0", at, block, 5)
	last := "thin-0"
	for i := range 100 {
		name := blockstore.ThinName(uint32(i + 1))
		r.snap(last, name)
		r.mustWrite(name, int64(i)*block, block, uint64(i))
		last = name
	}
	require.EqualValues(t, 5, r.word(last, at))
	b, owner, ok, err := r.p.Trace(last, 0x44f)
	require.NoError(t, err)
	require.True(t, ok)
	require.EqualValues(t, 0, owner, "the first device wrote it")
	first, _, _, err := r.p.Trace("thin-0", 0x44f)
	require.NoError(t, err)
	require.Equal(t, first, b)
}

func TestDiscardPartialBlocks(t *testing.T) {
	r := newRig(t, 64, blockstore.Options{})
	r.mustWrite("thin-0", 0, 3*block, 1)
	v := r.vol("thin-0")
	require.NoError(t, v.Discard(unit, block-unit), "less than a block: nothing happens")
	require.EqualValues(t, 3, r.used())
	require.NoError(t, v.Discard(unit, 2*block), "only the block that lies wholly inside")
	require.EqualValues(t, 2, r.used())
	require.EqualValues(t, 1, r.word("thin-0", 0))
	require.EqualValues(t, 0, r.word("thin-0", block))
	require.EqualValues(t, 1, r.word("thin-0", 2*block))
}

func TestDiscardToASharedBlockDoesntGetPassedDown(t *testing.T) {
	r := newRig(t, 64, blockstore.Options{})
	r.mustWrite("thin-0", 0, block, 1)
	r.snap("thin-0", "s")
	r.settle()
	punched := r.m.Punches
	require.NoError(t, r.vol("thin-0").Discard(0, block))
	r.settle()
	require.Equal(t, punched, r.m.Punches)
	require.EqualValues(t, 1, r.word("s", 0))
}

func TestDiscardToAPreviouslySharedBlockDoesGetPassedDown(t *testing.T) {
	r := newRig(t, 64, blockstore.Options{})
	r.mustWrite("thin-0", 0, block, 1)
	r.snap("thin-0", "s")
	require.NoError(t, r.vol("thin-0").Discard(0, block))
	r.settle()
	punched := r.m.Punches
	require.NoError(t, r.vol("s").Discard(0, block))
	r.settle()
	require.Greater(t, r.m.Punches, punched)
	require.Zero(t, r.used())
}

func TestDiscardOriginDoesNotEffectSnap(t *testing.T) {
	r := newRig(t, 64, blockstore.Options{})
	r.mustWrite("thin-0", 0, 8*block, 3)
	r.snap("thin-0", "s")
	require.NoError(t, r.vol("thin-0").Discard(0, 8*block))
	for i := range int64(8) {
		require.EqualValues(t, 3, r.word("s", i*block))
		require.EqualValues(t, 0, r.word("thin-0", i*block))
	}
}

func TestNoDiscardPassdown(t *testing.T) {
	r := newRig(t, 64, blockstore.Options{NoDiscardPassdown: true})
	r.mustWrite("thin-0", 0, block, 1)
	require.NoError(t, r.vol("thin-0").Discard(0, block))
	require.Zero(t, r.used())
	require.Zero(t, r.m.Punches)
	r.mustWrite("thin-0", 0, unit, 2)
	require.EqualValues(t, 0, r.word("thin-0", unit), "what was there must be zeroed all the same")
}

func TestZeroing(t *testing.T) {
	r := newRig(t, 4, blockstore.Options{NoDiscardPassdown: true})
	r.create("other", 1<<30)
	r.mustWrite("other", 0, 4*block, 0xbad)
	require.NoError(t, r.vol("other").Discard(0, 4*block))
	r.settle()
	for i := range int64(4) {
		r.mustWrite("thin-0", i*block+unit, unit, 1)
		require.EqualValues(t, 0, r.word("thin-0", i*block), "another device's data shows")
		require.EqualValues(t, 0, r.word("thin-0", i*block+2*unit), "another device's data shows")
	}
}

func TestSkipBlockZeroing(t *testing.T) {
	r := newRig(t, 1, blockstore.Options{NoDiscardPassdown: true, SkipZeroing: true})
	v, err := volume.New(r.s, volume.Config{ID: 0, Size: 1 << 30, BlockSize: block, SkipZeroing: true})
	require.NoError(t, err)
	_, err = r.s.Open("thin-0")
	require.NoError(t, err)
	r.open[0] = v
	r.mustWrite("thin-0", 0, block, 5)
	require.NoError(t, v.Discard(0, block))
	r.settle()
	r.mustWrite("thin-0", unit, unit, 1)
	require.EqualValues(t, 5, r.word("thin-0", 0), "the option says that old data may show")
}

func TestDeleteActiveDeviceFails(t *testing.T) {
	r := newRig(t, 2, blockstore.Options{})
	r.vol("thin-0")
	require.ErrorIs(t, r.p.Message("delete 0"), unix.EBUSY)
	r.release("thin-0")
	require.NoError(t, r.p.Message("delete 0"))
}

func TestDeleteUnknownDevices(t *testing.T) {
	r := newRig(t, 2, blockstore.Options{})
	for _, id := range []string{"1", "7", "16777215"} {
		require.ErrorIs(t, r.p.Message("delete "+id), unix.ENODATA)
	}
}

func TestMessages(t *testing.T) {
	r := newRig(t, 4, blockstore.Options{})
	for _, c := range []struct {
		message string
		want    error
	}{
		{"create_thin 0", unix.EEXIST},
		{"create_thin 16777216", unix.EINVAL}, // too_large_a_dev_t_fails
		{"create_thin -1", unix.EINVAL},
		{"create_thin", unix.EINVAL},
		{"create_thin 1 2", unix.EINVAL},
		{"create_snap 1 9", unix.ENODATA},
		{"create_snap 0 0", unix.EEXIST},
		{"set_transaction_id 1 2", unix.EINVAL}, // set_trans_id_check_first_arg
		{"release_metadata_snap", unix.EINVAL},
		{"trim", unix.EINVAL},
		{"", unix.EINVAL},
		{"create_thin 1", nil},
		{"create_thin 16777215", nil},
		{"create_snap 2 1", nil},
		{"set_transaction_id 0 500", nil},
	} {
		if err := r.p.Message(c.message); c.want == nil {
			require.NoError(t, err, c.message)
		} else {
			require.ErrorIs(t, err, c.want, c.message)
		}
	}
	require.EqualValues(t, 500, r.p.Status().Txid)
}

func TestNonPowerOf2DataBlockSizes(t *testing.T) {
	for size, ok := range map[int]bool{64 << 10: true, 192 << 10: true, 1 << 30: true, 32 << 10: false, 96 << 10: false, 2 << 30: false} {
		m := blockstore.NewMachine(1, 1<<16)
		err := m.Format(blockstore.Options{DataSize: 4 << 30, BlockSize: size})
		require.Equal(t, ok, err == nil, "block size %d: %v", size, err)
	}
}

func TestCannotHoldTwice(t *testing.T) {
	r := newRig(t, 8, blockstore.Options{})
	require.NoError(t, r.p.Message("reserve_metadata_snap"))
	require.ErrorIs(t, r.p.Message("reserve_metadata_snap"), unix.EBUSY)
	require.NotNil(t, r.p.Status().Held)
	require.NoError(t, r.p.Message("release_metadata_snap"))
	require.ErrorIs(t, r.p.Message("release_metadata_snap"), unix.EINVAL)
}

// Blocks of the metadata snapshot are not given away, and writing in place
// goes on.
func TestHeldBlocksAreKept(t *testing.T) {
	r := newRig(t, 8, blockstore.Options{ErrorIfNoSpace: true})
	r.mustWrite("thin-0", 0, 4*block, 1)
	require.NoError(t, r.p.Message("reserve_metadata_snap"))
	r.mustWrite("thin-0", 0, block, 2)
	require.EqualValues(t, 4, r.used(), "written in place, as in dm-thin")
	require.NoError(t, r.vol("thin-0").Discard(0, 4*block))
	require.EqualValues(t, 4, r.used(), "the snapshot has them")
	require.ErrorIs(t, r.write("thin-0", 0, 8*block, 3), unix.ENOSPC)
	r.settle()
	// The same after the pool was opened anew.
	r.closeAll()
	require.NoError(t, r.p.Close())
	p, err := r.m.Boot()
	require.NoError(t, err)
	r.host = newHost(p)
	require.EqualValues(t, 8, r.used())
	require.NoError(t, r.p.Message("release_metadata_snap"))
	require.EqualValues(t, 4, r.used())
}

func TestCreateLotsOfRecursiveSnaps(t *testing.T) {
	r := newRig(t, 64, blockstore.Options{})
	r.mustWrite("thin-0", 0, 16*block, 1)
	for i := range uint32(300) {
		r.snap(blockstore.ThinName(i), blockstore.ThinName(i+1))
	}
	require.EqualValues(t, 16, r.used())
	for i := range uint32(300) {
		r.release(blockstore.ThinName(i))
		info, err := r.p.Device(blockstore.ThinName(i))
		require.NoError(t, err)
		require.NoError(t, r.p.DeleteDevice(info.ID))
	}
	require.EqualValues(t, 16, r.used())
	require.EqualValues(t, 1, r.word("thin-300", 0))
	info, err := r.p.Device("thin-300")
	require.NoError(t, err)
	require.EqualValues(t, 16, info.Exclusive)
}

// The last of several sharers writes in place: n copies, where dm-thin's
// coarser test makes n+1.
func TestLastSharerWritesInPlace(t *testing.T) {
	r := newRig(t, 8, blockstore.Options{})
	r.mustWrite("thin-0", 0, block, 1)
	r.snap("thin-0", "s")
	r.mustWrite("s", 0, block, 2)
	require.EqualValues(t, 2, r.used())
	before, _, _, _ := r.p.Trace("thin-0", 0)
	r.mustWrite("thin-0", 0, block, 3)
	r.settle()
	after, _, _, _ := r.p.Trace("thin-0", 0)
	require.Equal(t, before, after)
}

func TestCommitIfChanged(t *testing.T) {
	r := newRig(t, 8, blockstore.Options{})
	r.mustWrite("thin-0", 0, block, 1)
	r.settle()
	seq := r.p.Status().Seq
	r.mustWrite("thin-0", 0, block, 2)
	require.NoError(t, r.vol("thin-0").Flush())
	require.Equal(t, seq, r.p.Status().Seq, "nothing but data changed")
	r.mustWrite("thin-0", block, block, 2)
	require.NoError(t, r.vol("thin-0").Flush())
	require.Greater(t, r.p.Status().Seq, seq)
}

// commit_failure_causes_fallback: the pool takes no changes, marks itself,
// reads go on, and those who lost something hear of it.
func TestCommitFailureCausesFallback(t *testing.T) {
	r := newRig(t, 16, blockstore.Options{})
	r.create("quiet", 1<<30)
	r.mustWrite("quiet", 0, block, 9)
	r.mustWrite("thin-0", 0, block, 1)
	r.settle()
	r.mustWrite("thin-0", block, block, 2)
	r.m.Plan(0, 1) // the next step fails: syncing the data
	require.Error(t, r.vol("thin-0").Flush())
	st := r.p.Status()
	require.Equal(t, "ro", st.Mode)
	require.True(t, st.NeedsCheck)
	require.Contains(t, st.DM(), " ro ")
	require.Contains(t, st.DM(), "needs_check")
	require.ErrorIs(t, r.p.Message("create_thin 5"), unix.EOPNOTSUPP)
	require.ErrorIs(t, r.p.Message("delete 1"), unix.EOPNOTSUPP)
	require.EqualValues(t, 9, r.word("quiet", 0))
	require.EqualValues(t, 1, r.word("thin-0", 0))
	require.ErrorIs(t, r.write("quiet", block, block, 1), unix.EIO)
	require.NoError(t, r.vol("quiet").Discard(0, block), "a discard of a read-only pool succeeds without effect")
	require.EqualValues(t, 9, r.word("quiet", 0))
	// The mark survives.
	r.closeAll()
	r.p.Close()
	p, err := r.m.Boot()
	require.NoError(t, err)
	r.host = newHost(p)
	require.True(t, r.p.Status().NeedsCheck)
	require.Equal(t, "ro", r.p.Status().Mode)
}

func TestSnapFractionalTailBlock(t *testing.T) {
	r := newRig(t, 16, blockstore.Options{})
	// An external origin that ends within a block.
	path := t.TempDir() + "/origin"
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte{0xab}, 2*block+3*unit), 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	o, err := volume.Identify(f)
	require.NoError(t, err)
	_, err = r.p.CreateDevice(blockstore.NewDevice{Name: "ext", Size: 8 * block, Origin: o})
	require.NoError(t, err)
	info, err := r.s.Open("ext")
	require.NoError(t, err)
	v, err := volume.New(r.s, volume.Config{ID: info.ID, Size: info.Size, BlockSize: block, Origin: info.Origin})
	require.NoError(t, err)
	r.open[info.ID] = v
	const ab = uint64(0xabababababababab)
	require.EqualValues(t, ab, r.word("ext", 2*block+2*unit))
	require.EqualValues(t, 0, r.word("ext", 2*block+3*unit), "past the end of the origin")
	r.mustWrite("ext", 2*block, unit, 1)
	require.EqualValues(t, 1, r.word("ext", 2*block))
	require.EqualValues(t, ab, r.word("ext", 2*block+unit), "copied from the origin")
	require.EqualValues(t, 0, r.word("ext", 2*block+3*unit), "the rest of the tail block is zeros")
	require.EqualValues(t, 1, r.used())
	require.NoError(t, v.Zero(0, 2*block, true))
	require.EqualValues(t, 0, r.word("ext", 0), "what is zeroed does not show the origin")
	require.EqualValues(t, 1, r.used(), "and takes no block")
	require.NoError(t, v.Resize(block))
	require.NoError(t, v.Resize(8*block))
	require.EqualValues(t, 0, r.word("ext", 2*block), "what was cut off and grown again is zeros")
	require.EqualValues(t, 0, r.word("ext", block+unit))
	// An origin that changes is refused.
	r.release("ext")
	require.NoError(t, os.WriteFile(path, []byte("other"), 0o600))
	info, err = r.p.Device("ext")
	require.NoError(t, err)
	_, err = volume.New(r.s, volume.Config{ID: info.ID, Size: info.Size, BlockSize: block, Origin: info.Origin})
	require.ErrorIs(t, err, unix.EIO)
}

// A write that was answered and cannot be assigned any more is an error to
// the writer too, not only to who takes a snapshot.
func TestSettlingFails(t *testing.T) {
	r := newRig(t, 8, blockstore.Options{})
	r.mustWrite("thin-0", 0, block, 1)
	r.p.DataFailed(unix.EIO)
	v := r.open[0]
	require.ErrorIs(t, v.Settle(), unix.EIO)
	require.ErrorIs(t, v.Flush(), unix.EIO)
}

// The blocks of an exported pool may be anybody's.
func TestExportedPoolIsNotRead(t *testing.T) {
	r := newRig(t, 8, blockstore.Options{})
	require.NoError(t, r.p.View(func() error { return nil }))
	require.NoError(t, r.p.SetExported())
	require.Error(t, r.p.View(func() error { t.Error("read"); return nil }))
	_, err := r.s.Open("thin-0")
	require.Error(t, err)
	require.Error(t, r.p.Trim())
	require.NoError(t, r.p.Unexport())
	require.NoError(t, r.p.View(func() error { return nil }))
	require.NoError(t, r.p.Message("create_thin 5"))
}
