package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
)

// Version changes whenever the two sides would misunderstand each other.
const Version = 2

// Kind is what a frame means.
type Kind uint8

// Requests of the client.
const (
	Leaf Kind = iota + 1
	Reserve
	Return
	Assign
	Unmap
	SetZero
	Flush
	Adopt
	AdoptBlocks
	DataFailed
	Cancel // ends the request whose id is the body
	Admin
	SetSize
)

// Frames of the server, and the client's answer to what it is asked.
const (
	Answer Kind = iota + 64
	Failure
	Published
	Settle
	Drop
	GiveBack
	Done
)

// MaxBody is the longest body in bytes that either side accepts.
const MaxBody = 16 << 20

const headerSize = 16

// Frame is one message.
type Frame struct {
	Kind Kind
	ID   uint64
	Body []byte
}

// Conn sends and receives frames. Send may be called concurrently.
type Conn struct {
	sock *net.UnixConn
	in   *bufio.Reader
	out  sync.Mutex
}

// NewConn makes a connection of a socket on which the greeting has passed.
func NewConn(sock *net.UnixConn) *Conn {
	return &Conn{sock: sock, in: bufio.NewReaderSize(sock, 32<<10)}
}

// Close ends the connection.
func (c *Conn) Close() error { return c.sock.Close() }

// Send writes a frame.
func (c *Conn) Send(f Frame) error {
	buf := make([]byte, headerSize, headerSize+len(f.Body))
	binary.LittleEndian.PutUint32(buf, uint32(len(f.Body)))
	buf[4] = byte(f.Kind)
	binary.LittleEndian.PutUint64(buf[8:], f.ID)
	c.out.Lock()
	defer c.out.Unlock()
	_, err := c.sock.Write(append(buf, f.Body...))
	return err
}

// Receive reads the next frame.
func (c *Conn) Receive() (Frame, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return Frame{}, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > MaxBody {
		return Frame{}, fmt.Errorf("a frame of %d bytes: at most %d are allowed", n, MaxBody)
	}
	f := Frame{Kind: Kind(head[4]), ID: binary.LittleEndian.Uint64(head[8:]), Body: make([]byte, n)}
	_, err := io.ReadFull(c.in, f.Body)
	return f, err
}

var greeting = [8]byte{'l', 'f', 'p', 'o', 'o', 'l', 0, Version}

// Greet sends the greeting with a descriptor.
func Greet(sock *net.UnixConn, fd int) error {
	_, _, err := sock.WriteMsgUnix(greeting[:], unix.UnixRights(fd), nil)
	return err
}

// Greeted receives the greeting and the descriptor.
func Greeted(sock *net.UnixConn) (fd int, err error) {
	buf, oob := make([]byte, len(greeting)), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := sock.ReadMsgUnix(buf, oob)
	if err != nil {
		return -1, err
	}
	if n == 0 {
		return -1, io.EOF
	}
	fds, err := rights(oob[:oobn])
	if err != nil {
		return -1, err
	}
	if [8]byte(buf) != greeting || len(fds) != 1 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return -1, errs.New(errs.Busy, "the pool is served by a layerfs of another version; it ends when its users do")
	}
	return fds[0], nil
}

func rights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(err, fmt.Errorf("the pool process sent no descriptor"))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds, err
}

// failure is an error on its way.
type failure struct {
	Text  string        `json:"text"`
	Class errs.Class    `json:"class"`
	Errno syscall.Errno `json:"errno,omitempty"`
}

// EncodeError makes the body of a Failure.
func EncodeError(err error) []byte {
	f := failure{Text: err.Error(), Class: errs.Of(err)}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		f.Errno = errno
	}
	data, _ := json.Marshal(f) // strings and numbers
	return data
}

// remote is an error that a pool process gave. It reads as it did there and
// wraps the same errno.
type remote struct {
	text  string
	errno syscall.Errno
}

func (r *remote) Error() string { return r.text }

func (r *remote) Unwrap() error {
	if r.errno == 0 {
		return nil
	}
	return r.errno
}

// DecodeError restores the error in the body of a Failure.
func DecodeError(body []byte) error {
	var f failure
	if err := json.Unmarshal(body, &f); err != nil {
		return fmt.Errorf("the pool process sent an error that cannot be read: %w", err)
	}
	return errs.New(max(f.Class, errs.Failed), "%w", &remote{f.Text, f.Errno})
}

// Words encodes numbers; ParseWords reads them back.
func Words(w ...uint64) []byte {
	out := make([]byte, 0, 8*len(w))
	for _, v := range w {
		out = binary.LittleEndian.AppendUint64(out, v)
	}
	return out
}

// ParseWords decodes a body of numbers, of which there must be at least n.
func ParseWords(body []byte, n int) ([]uint64, error) {
	if len(body)%8 != 0 || len(body) < 8*n {
		return nil, fmt.Errorf("a body of %d bytes, expected %d or more", len(body), 8*n)
	}
	out := make([]uint64, len(body)/8)
	for i := range out {
		out[i] = binary.LittleEndian.Uint64(body[8*i:])
	}
	return out, nil
}
