package fusedev

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// tiny is a file system with one file, "file"; reading "stuck" blocks.
type tiny struct {
	fuse.RawFileSystem
	content   []byte
	release   chan struct{}
	unmounted atomic.Bool
}

func newTiny() *tiny {
	return &tiny{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		content:       bytes.Repeat([]byte("0123456789abcdef"), 20000),
		release:       make(chan struct{}),
	}
}

func (f *tiny) attr(node uint64, a *fuse.Attr) {
	*a = fuse.Attr{Ino: node, Mode: syscall.S_IFREG | 0o644, Size: uint64(len(f.content)), Nlink: 1}
	if node == fuse.FUSE_ROOT_ID {
		a.Mode, a.Size = syscall.S_IFDIR|0o755, 0
	}
}

func (f *tiny) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (f *tiny) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	node := map[string]uint64{"file": 2, "stuck": 3, "panic": 4}[name]
	if node == 0 {
		return fuse.ENOENT
	}
	out.NodeId = node
	out.SetEntryTimeout(time.Hour)
	f.attr(node, &out.Attr)
	return fuse.OK
}

func (f *tiny) Open(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	if in.NodeId == 4 {
		panic("on purpose")
	}
	return fuse.OK
}

func (f *tiny) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if in.NodeId == 3 {
		select {
		case <-f.release:
		case <-cancel:
			return nil, fuse.EINTR
		}
	}
	off := min(int(in.Offset), len(f.content))
	return fuse.ReadResultData(f.content[off:min(off+len(buf), len(f.content))]), fuse.OK
}

func (f *tiny) OnUnmount() { f.unmounted.Store(true) }

// serve mounts f on a new directory; wait unmounts and returns what Serve did.
func serve(t *testing.T, f *tiny) (dir string, c *Conn, wait func() error) {
	t.Helper()
	if fd, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skip(err)
	} else {
		fd.Close()
	}
	dir = t.TempDir()
	c, err := Mount(MountConfig{Mountpoint: dir, FsName: "tiny", Subtype: "layerfs-test", DefaultPermissions: true, MaxRead: 1 << 17})
	if err != nil {
		t.Skip(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Serve(f, &fuse.MountOptions{MaxWrite: 1 << 17, MaxBackground: 12}) }()
	var once sync.Once
	var result error
	wait = func() error {
		once.Do(func() {
			if err := Unmount(dir, true); err != nil {
				t.Error(err)
			}
			result = <-done
			c.Close()
		})
		return result
	}
	t.Cleanup(func() { wait() })
	return dir, c, wait
}

func TestServe(t *testing.T) {
	f := newTiny()
	dir, c, wait := serve(t, f)
	got, err := os.ReadFile(filepath.Join(dir, "file"))
	if err != nil || !bytes.Equal(got, f.content) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	if _, err := os.Open(filepath.Join(dir, "panic")); err == nil {
		t.Error("a panic was answered with success")
	}
	if err := c.InvalEntry(1, "file"); err != nil {
		t.Error(err)
	}
	if err := c.InvalEntry(1, "never seen"); err != nil {
		t.Error(err)
	}
	if err := c.InvalInode(2, 0, 0); err != nil {
		t.Error(err)
	}
	if err := c.Delete(1, 3, "never seen"); err != nil {
		t.Error(err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
	if !f.unmounted.Load() {
		t.Error("OnUnmount was not called")
	}
}

// Blocked handlers, many more than there are idle readers, must not keep
// others from being served, nor the end of the mount from being noticed.
func TestBlockedHandlers(t *testing.T) {
	f := newTiny()
	dir, _, wait := serve(t, f)
	var opened []*os.File
	for range 20 {
		h, err := os.Open(filepath.Join(dir, "stuck"))
		if err != nil {
			t.Fatal(err)
		}
		opened = append(opened, h)
	}
	var readers sync.WaitGroup
	for _, h := range opened {
		readers.Go(func() { h.ReadAt(make([]byte, 10), 0) })
	}
	time.Sleep(50 * time.Millisecond)
	for range 10 {
		if _, err := os.Stat(filepath.Join(dir, "nothing")); !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	close(f.release)
	readers.Wait()
	for _, h := range opened {
		h.Close()
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
}

func TestPayloadSize(t *testing.T) {
	msg := make([]byte, unsafe.Sizeof(fuse.ReadIn{}))
	binary.NativeEndian.PutUint32(msg[unsafe.Offsetof(fuse.ReadIn{}.Size):], 70000)
	if got := payloadSize(opRead, msg); got != 70000 {
		t.Errorf("READ: %d", got)
	}
	if got := payloadSize(opRead, msg[:headerSize]); got != 0 {
		t.Errorf("short READ: %d", got)
	}
	var pools outputPools
	for _, n := range []int{0, 1, 4096, 4097, 1 << 20, 1<<20 + 1} {
		b := pools.get(n)
		if len(*b) < n+320 {
			t.Errorf("payload %d: buffer of %d bytes", n, len(*b))
		}
		pools.put(b)
		if again := pools.get(n); len(*again) != len(*b) {
			t.Errorf("payload %d: another class", n)
		}
	}
}

func TestHelperOptions(t *testing.T) {
	got := helperOptions(MountConfig{FsName: `a,b\c`, Subtype: "layerfs", Flags: syscall.MS_RDONLY | syscall.MS_NODEV, AllowOther: true})
	if want := `ro,nodev,allow_other,fsname=a\,b\\c,subtype=layerfs`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
