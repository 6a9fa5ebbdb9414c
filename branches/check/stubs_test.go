package check

import (
	"errors"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches/offline"
	"github.com/layerfs/layerfs/internal/stub"
)

// fakePool is a private pool of which only the records of devices are.
type fakePool struct {
	list   map[string]stub.Device
	broken error
}

func (p *fakePool) Private(*os.File, string, bool) (stub.Store, error) { return p, p.broken }
func (p *fakePool) Shared() (stub.Store, error)                        { return nil, errors.New("none") }
func (p *fakePool) HasShared() bool                                    { return false }

func (p *fakePool) Devices() (list []stub.Device, err error) {
	for _, d := range p.list {
		list = append(list, d)
	}
	return list, nil
}

func (p *fakePool) Delete(name string) error {
	delete(p.list, name)
	return nil
}

func (p *fakePool) SetOrigin(name string, o stub.Origin) error {
	d := p.list[name]
	d.Origin = &o
	p.list[name] = d
	return nil
}

var errNotHere = errors.New("not in this test")

func (p *fakePool) ID() string                                          { return "" }
func (p *fakePool) Create(stub.Device) error                            { return errNotHere }
func (p *fakePool) Snapshot(stub.Device, string) error                  { return errNotHere }
func (p *fakePool) Info(string) (stub.Device, error)                    { return stub.Device{}, errNotHere }
func (p *fakePool) Open(string, io.ReaderAt, bool) (stub.Blocks, error) { return nil, errNotHere }
func (p *fakePool) SetState(string, string, string) error               { return errNotHere }
func (p *fakePool) Close() error                                        { return nil }

const upperID = "00112233445566778899aabbccddeeff"

// pool gives the upper of b a private pool.
func (b *bench) pool() *fakePool {
	require.NoError(b.t, os.MkdirAll(b.up+"/.wh..wh.layerfs/pool", 0700))
	require.NoError(b.t, os.WriteFile(b.up+"/.wh..wh.layerfs/id", []byte(upperID+" x\n"), 0600))
	p := &fakePool{list: map[string]stub.Device{}}
	b.pools = p
	return p
}

// stub makes a stub of a device that is over the lower file rel.
func (b *bench) stub(p *fakePool, name, rel string) stub.Record {
	b.file(name, string(stub.Text()))
	r := stub.Record{Pool: stub.Private, Device: "dev-" + name, Key: stub.NewKey()}
	b.set(name, "user."+stub.Attr, r.String())
	d := stub.Device{Name: r.Device, Key: r.Key, Upper: upperID, Size: 5}
	if rel != "" {
		require.NoError(b.t, os.WriteFile(b.low+"/"+rel, []byte("lower"), 0644))
		var st unix.Stat_t
		require.NoError(b.t, unix.Stat(b.low+"/"+rel, &st))
		d.Origin = &stub.Origin{Path: b.low + "/" + rel, Rel: rel, Size: st.Size, Mtime: st.Mtim.Nano(), Ino: st.Ino, Valid: st.Size}
	}
	p.list[d.Name] = d
	return r
}

// A lower file that has moved is found, and the pool is told.
func TestRebind(t *testing.T) {
	b := newBench(t)
	p := b.pool()
	b.stub(p, "s", "file")
	require.NoError(t, os.Mkdir(b.low+"/deep", 0755))
	require.NoError(t, os.Rename(b.low+"/file", b.low+"/deep/file"))
	require.Equal(t, []string{"stub-origin /s"}, kinds(b.run(false, b.low)))
	require.Equal(t, []string{"stub-origin /s"}, kinds(b.run(true, b.low)), "a repair guesses nothing")

	u, err := offline.OpenAlone(b.up, b.work)
	require.NoError(t, err)
	r, err := Run(u, Options{Lowers: []string{b.low}, Pools: b.pools, Rebind: true})
	u.Close()
	require.NoError(t, err)
	require.Zero(t, r.Left, "%v", r.Findings)
	require.Equal(t, "deep/file", p.list["dev-s"].Origin.Rel)
	require.Empty(t, kinds(b.run(false, b.low)))

	// Two of its name, size and time: nobody knows which.
	p.list["dev-s"].Origin.Rel = "nowhere/file"
	old := p.list["dev-s"].Origin.Mtime
	require.NoError(t, os.WriteFile(b.low+"/file", []byte("other"), 0644))
	at := unix.NsecToTimespec(old)
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, b.low+"/file", []unix.Timespec{at, at}, 0))
	require.Equal(t, []string{"stub-origin /s"}, kinds(b.run(false, b.low)))
}
