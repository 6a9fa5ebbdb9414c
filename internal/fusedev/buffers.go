package fusedev

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	pageSize = 4096

	// The kernel refuses to read into anything smaller.
	minInput = 8192

	// Headers and the largest structured answer, which is less than 320
	// bytes, fit beside a payload of a class's nominal size.
	outputSlack = pageSize

	minClass = 12 // 4 KiB of payload, 8 KiB in all
	maxClass = 24
)

// input is a buffer for requests. It is not of Go's heap: what the kernel has not
// written to takes no memory, so that readers who wait cost little, however large a
// request might be.
type input struct {
	memory []byte // the mapping
	buf    []byte // of the size that was asked for
	used   int    // the largest request that was read into it
}

const (
	// With more connections than this, a process gives back what large requests
	// have used at once; with fewer it keeps it for the next one.
	fewConns = 8
	// keptInputs is how many unused buffers keep what small requests have used.
	keptInputs = 16
	// warmInputs is how many keep what large ones have used, until there are no more
	// requests for a moment: to fault the pages in again costs as much as to copy the data.
	warmInputs = 4
	// smallInput is what readers may keep in any case.
	smallInput = 64 << 10
)

// conns is how many connections this process serves.
var conns atomic.Int32

// inputPool hands out buffers for requests, of one size, to all connections of
// the process.
type inputPool struct {
	size int
	mu   sync.Mutex
	free []*input // protected by mu
}

// inputPools are the pools by size.
var inputPools sync.Map

func inputPoolFor(maxWrite int) *inputPool {
	size := max(maxWrite+pageSize, minInput)
	p, _ := inputPools.LoadOrStore(size, &inputPool{size: size})
	return p.(*inputPool)
}

func (p *inputPool) get() (*input, error) {
	p.mu.Lock()
	if last := len(p.free) - 1; last >= 0 {
		in := p.free[last]
		p.free = p.free[:last]
		p.mu.Unlock()
		return in, nil
	}
	p.mu.Unlock()
	memory, err := unix.Mmap(-1, 0, p.size+2*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	// The data of a WRITE begins after its header. It is put at a page boundary,
	// so that it can be passed on to an O_DIRECT file.
	skip := pageSize - int(unsafe.Sizeof(fuse.WriteIn{}))
	return &input{memory: memory, buf: memory[skip : skip+p.size]}, nil
}

// put takes a buffer back. It is never unmapped: whoever kept a reference by mistake
// would take the process down.
func (p *inputPool) put(in *input) {
	p.mu.Lock()
	defer p.mu.Unlock()
	warm := 0
	for _, f := range p.free {
		if f.used > smallInput {
			warm++
		}
	}
	if in.used > smallInput && (warm >= warmInputs || conns.Load() > fewConns) || len(p.free) >= keptInputs {
		in.release()
	}
	p.free = append(p.free, in)
}

// cool gives back what large requests have used of buffers that nobody has.
func (p *inputPool) cool() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, in := range p.free {
		if in.used > smallInput {
			in.release()
		}
	}
}

// rest is called before a reader waits for the next request.
func (in *input) rest() {
	if in.used > smallInput && conns.Load() > fewConns {
		in.release()
	}
}

// release gives the memory back to the kernel.
func (in *input) release() {
	_ = unix.Madvise(in.memory, unix.MADV_DONTNEED)
	in.used = 0
}

// outputPools hold buffers for answers: class i has room for 1<<i bytes of
// payload.
type outputPools [maxClass + 1]sync.Pool

func classOf(payload int) int {
	if payload <= 1<<minClass {
		return minClass
	}
	return bits.Len(uint(payload - 1))
}

func (p *outputPools) get(payload int) *[]byte {
	class := classOf(payload)
	if class <= maxClass {
		if b, ok := p[class].Get().(*[]byte); ok {
			return b
		}
	}
	b := make([]byte, 1<<class+outputSlack)
	return &b
}

func (p *outputPools) put(b *[]byte) {
	class := classOf(len(*b) - outputSlack)
	if class <= maxClass {
		p[class].Put(b)
	}
}
