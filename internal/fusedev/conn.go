package fusedev

import (
	"log"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// minProcs is how many threads may run Go code. A reader that waits at the
	// device gives its turn back, and must not wait for another one when a request
	// has come: on two processors that was most of what a request cost.
	minProcs = 8

	// How long Serve waits for handlers after the unmount. Whatever they
	// still answer, nobody hears it.
	drainTime = 200 * time.Millisecond
)

// Gate is what requests pass on their way in and out.
type Gate interface {
	Enter()
	Leave()
}

// Conn is one mount's connection with the kernel.
type Conn struct {
	// OnInit, when set before Serve, is told what the kernel offers.
	OnInit func(fuse.InitIn)
	// Gate, when set before Serve, is entered by every request for the time
	// that it is handled.
	Gate Gate

	// fdMu keeps the descriptor's number from being closed, and taken by
	// another file, while an answer or a notification is written to it.
	fdMu   sync.RWMutex
	fd     int
	closed bool

	mountpoint string // immutable
	readAhead  int    // bytes, see readAhead. Immutable while served.

	server *fuse.ProtocolServer
	log    *log.Logger
	input  *inputPool
	output outputPools

	waiting atomic.Int32  // readers at the device
	wanted  atomic.Int32  // how many of them may wait there
	seen    atomic.Uint64 // requests that were read
	ticking atomic.Bool   // the clock runs
	dead    atomic.Bool   // the kernel has ended the connection
	ended   chan error    // the first reader to find that out says why

	mu      sync.Mutex
	readers map[*reader]struct{}
	gone    sync.WaitGroup
}

func newConn(fd int, mountpoint string) *Conn {
	return &Conn{fd: fd, mountpoint: mountpoint, ended: make(chan error, 1), readers: map[*reader]struct{}{}}
}

// Serve handles requests until the file system is unmounted and then calls
// fs.OnUnmount. Handlers that still run are cancelled and given a moment.
func (c *Conn) Serve(fs fuse.RawFileSystem, opts *fuse.MountOptions) error {
	o := *opts
	if o.MaxWrite <= 0 {
		o.MaxWrite = 128 << 10 // what ProtocolServer makes of it
	}
	if o.Logger == nil {
		o.Logger = log.Default()
	}
	c.log, c.readAhead = o.Logger, o.MaxReadAhead
	c.server = fuse.NewProtocolServer(fs, &o)
	c.input = inputPoolFor(o.MaxWrite)
	conns.Add(1)
	defer conns.Add(-1)
	moreProcs()

	c.wanted.Store(1)
	c.start()
	err := <-c.ended
	c.cancelAll()
	c.drain()
	fs.OnUnmount()
	return err
}

// moreProcs sees to minProcs.
var moreProcs = sync.OnceFunc(func() {
	if runtime.GOMAXPROCS(0) < minProcs {
		runtime.GOMAXPROCS(minProcs)
	}
})

// start adds a reader, which counts as waiting from now on.
func (c *Conn) start() {
	r := &reader{conn: c}
	c.mu.Lock()
	c.readers[r] = struct{}{}
	c.mu.Unlock()
	c.waiting.Add(1)
	c.gone.Add(1)
	go r.run()
}

// end notes that no more requests will come. Only the first cause counts.
func (c *Conn) end(err error) {
	if c.dead.CompareAndSwap(false, true) {
		c.ended <- err
	}
}

// cancelAll interrupts the handlers that wait for something, by the same
// message with which the kernel would.
func (c *Conn) cancelAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for r := range c.readers {
		if unique := r.unique.Load(); unique != 0 {
			c.server.HandleRequest([][]byte{interruptMessage(unique)}, [][]byte{make([]byte, minInput)})
		}
	}
}

func (c *Conn) drain() {
	done := make(chan struct{})
	go func() {
		c.gone.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(drainTime):
	}
}

// Close gives the device back, which ends the mount if it still exists. It
// is to be called after Serve has returned, or when Serve is not called.
func (c *Conn) Close() {
	c.dead.Store(true)
	c.fdMu.Lock()
	defer c.fdMu.Unlock()
	if !c.closed {
		c.closed = true
		unix.Close(c.fd)
	}
}

// write sends one message to the kernel.
func (c *Conn) write(msg []byte) error {
	c.fdMu.RLock()
	defer c.fdMu.RUnlock()
	if c.closed {
		return syscall.ENODEV
	}
	for {
		_, err := syscall.Write(c.fd, msg)
		if err != syscall.EINTR {
			return err
		}
	}
}
