package faults

import (
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Plan says what happens to which system call.
type Plan struct {
	Armed  atomic.Int64 // calls count while it is not 0
	Calls  atomic.Int64 // calls made while armed
	At     atomic.Int64 // the call that fails, counted from 1; 0 for none
	Errno  atomic.Int64 // with what, or Kill
	Sticky atomic.Int64 // not 0: so does every later call of that kind
	All    atomic.Int64 // not 0: calls that change nothing on disk count too
	ops    [4096][20]byte
}

// Kill as Plan.Errno ends the process before the call.
const Kill = -1

const size = int(unsafe.Sizeof(Plan{}))

// Create makes the file of a plan that does nothing, and maps it.
func Create(path string) (*Plan, error) {
	if err := os.WriteFile(path, make([]byte, size), 0666); err != nil {
		return nil, err
	}
	return Map(path)
}

// Map maps the plan in a file that Create has made. It stays mapped.
func Map(path string) (*Plan, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*Plan)(unsafe.Pointer(&b[0])), nil
}

// Kills starts counting the calls that change something, and ends the process
// before the one with the number at.
func (p *Plan) Kills(at int) { p.arm(at, Kill, false, false) }

// Fails starts counting calls of every kind, and makes the one with the number
// at fail; sticky makes all later ones of its kind fail too.
func (p *Plan) Fails(at int, errno unix.Errno, sticky bool) { p.arm(at, int(errno), sticky, true) }

func (p *Plan) arm(at, errno int, sticky, all bool) {
	p.Armed.Store(0)
	p.Calls.Store(0)
	p.At.Store(int64(at))
	p.Errno.Store(int64(errno))
	p.Sticky.Store(number(sticky))
	p.All.Store(number(all))
	p.Armed.Store(1)
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Disarm stops counting and returns how many calls there were.
func (p *Plan) Disarm() int {
	p.Armed.Store(0)
	return int(p.Calls.Load())
}

// Op returns the name of the call number n, counted from 1.
func (p *Plan) Op(n int) string {
	if n < 1 || n > len(p.ops) {
		return "?"
	}
	return unix.ByteSliceToString(p.ops[n-1][:])
}

// Ops returns the names of the first n calls.
func (p *Plan) Ops(n int) []string {
	var ops []string
	for i := 1; i <= n; i++ {
		ops = append(ops, p.Op(i))
	}
	return ops
}

// harmless are the calls that change nothing on disk: being killed before one
// is being killed before the next that does.
var harmless = map[string]bool{
	"openat2": true, "open": true, "statx": true, "fstatfs": true, "getxattr": true, "listxattr": true,
	"getdents64": true, "readlinkat": true, "lseek": true, "pread": true, "preadv": true, "fcntl": true,
	"name_to_handle_at": true, "flock": true, "faccessat2": true, "fsync": true, "fdatasync": true, "sync_file_range": true,
	"dm look": true, "blkgetsize64": true,
}

// Check counts the system call op, which is about to be made, and returns the
// error that it is to fail with, nil to let it be made.
func (p *Plan) Check(op string) error {
	if p.Armed.Load() == 0 || p.All.Load() == 0 && harmless[op] {
		return nil
	}
	n := p.Calls.Add(1)
	if int(n) <= len(p.ops) {
		clear(p.ops[n-1][:])
		copy(p.ops[n-1][:len(p.ops[0])-1], op)
	}
	at := p.At.Load()
	if at == 0 || n < at || n > at && (p.Sticky.Load() == 0 || p.Op(int(at)) != op) {
		return nil
	}
	if e := p.Errno.Load(); e != Kill {
		return unix.Errno(e)
	}
	_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
	select {}
}
