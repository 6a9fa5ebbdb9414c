package fusedev

import (
	"math/bits"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
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

// inputPool hands out buffers for requests.
type inputPool struct{ pool sync.Pool }

func newInputPool(maxWrite int) *inputPool {
	size := max(maxWrite+pageSize, minInput)
	p := &inputPool{}
	p.pool.New = func() any {
		// The data of a WRITE begins after its header. It is put at a page
		// boundary, so that it can be passed on to an O_DIRECT file.
		buf := make([]byte, size+2*pageSize)
		data := uintptr(unsafe.Pointer(&buf[0])) + unsafe.Sizeof(fuse.WriteIn{})
		skip := int(-data & (pageSize - 1))
		buf = buf[skip : skip+size]
		return &buf
	}
	return p
}

func (p *inputPool) get() *[]byte  { return p.pool.Get().(*[]byte) }
func (p *inputPool) put(b *[]byte) { p.pool.Put(b) }

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
