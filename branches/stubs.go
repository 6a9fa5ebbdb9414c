package branches

import (
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/stub"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

func (b *Branch) detectStubs() {
	st, err := sys.StatAt(b.Root, whiteout.StubDir, b.statFlags)
	b.Stubs.Store(err == nil && st.IsDir())
}

// MakeStubDir makes the directory in which the private pool of the upper b
// and its identity are.
func (b *Branch) MakeStubDir() error {
	fd, err := makeDir(b.Root, whiteout.StubDir)
	if err != nil {
		return err
	}
	sys.Close(fd)
	b.Stubs.Store(true)
	return nil
}

// StubAt reads what the file name in dirfd, of the branch b and with the
// attributes st, says about where its content is; ok is false when it is no stub.
func (b *Branch) StubAt(dirfd int, name string, st *sys.Stat) (r stub.Record, ok bool, err error) {
	if st.Type() != unix.S_IFREG || st.MountRoot || !b.Stubs.Load() && st.Size != stub.Size {
		return r, false, nil
	}
	return stub.Read(dirfd, name)
}
