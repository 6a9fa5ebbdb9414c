package nbd

import (
	"io"
	"net"
	"sync"
)

const (
	// Replies are held back only while further requests lie in the receive
	// buffer, and no more than this of them: a client that waits for them
	// all does nothing meanwhile.
	corkBytes   = 128 << 10
	corkReplies = 8

	maxMessage = 1 << 10 // bytes of an error's text
)

// reply is one message to the client, or one chunk of a structured one.
type reply struct {
	head [48]byte
	n    int // bytes of head in use
	data []byte

	// Given back once the message is sent.
	buf      *buffer
	requests int
}

func simpleReply(cookie uint64, code uint32) (r reply) {
	be.PutUint32(r.head[:], magicSimple)
	be.PutUint32(r.head[4:], code)
	be.PutUint64(r.head[8:], cookie)
	r.n = simpleSize
	return r
}

// chunk starts a structured reply chunk with length bytes of payload.
func chunk(cookie uint64, flags, kind uint16, length int) (r reply) {
	be.PutUint32(r.head[:], magicStructured)
	be.PutUint16(r.head[4:], flags)
	be.PutUint16(r.head[6:], kind)
	be.PutUint64(r.head[8:], cookie)
	be.PutUint32(r.head[16:], uint32(length))
	r.n = chunkSize
	return r
}

func dataChunk(cookie uint64, flags uint16, off uint64, data []byte) reply {
	r := chunk(cookie, flags, chunkOffsetData, 8+len(data))
	be.PutUint64(r.head[r.n:], off)
	r.n += 8
	r.data = data
	return r
}

func holeChunk(cookie uint64, flags uint16, off uint64, length int) reply {
	r := chunk(cookie, flags, chunkOffsetHole, 12)
	be.PutUint64(r.head[r.n:], off)
	be.PutUint32(r.head[r.n+8:], uint32(length))
	r.n += 12
	return r
}

func errorChunk(cookie uint64, code uint32, text string) reply {
	text = message(text, maxMessage)
	r := chunk(cookie, chunkDone, chunkError, 6+len(text))
	be.PutUint32(r.head[r.n:], code)
	be.PutUint16(r.head[r.n+4:], uint16(len(text)))
	r.n += 6
	r.data = []byte(text)
	return r
}

// giving makes r the last message of its request, which gives back what
// the request was admitted with.
func (r reply) giving(buf *buffer) reply {
	r.buf, r.requests = buf, 1
	return r
}

// writeTo sends the message on its own.
func (r *reply) writeTo(w io.Writer) error {
	iov := net.Buffers{r.head[:r.n], r.data}
	_, err := iov.WriteTo(w)
	return err
}

// outq is the sending side of a connection. Whoever finds the socket free
// sends what is queued, his own and what others add meanwhile, in one writev
// after the other; nobody else waits for the socket.
type outq struct {
	conn net.Conn
	mem  *budget

	sending sync.Mutex  // held by whoever writes to conn; before mu
	iov     net.Buffers // guarded by sending

	mu    sync.Mutex
	queue []reply
	spare []reply // the other half of a double buffer
	bytes int     // of payload in queue
	err   error   // the first of sending; nothing is sent after it
}

func newOutq(conn net.Conn, mem *budget) *outq { return &outq{conn: conn, mem: mem} }

// add queues a reply and reports that enough are queued.
func (q *outq) add(r reply) (full bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = append(q.queue, r)
	q.bytes += len(r.data)
	return q.bytes >= corkBytes || len(q.queue) >= corkReplies
}

// put sends a reply.
func (q *outq) put(r reply) {
	q.add(r)
	q.flush()
}

// flush sends what is queued, or leaves it to whoever is sending: he looks
// again after he has unlocked.
func (q *outq) flush() {
	for q.pending() && q.sending.TryLock() {
		q.sendQueue()
		q.sending.Unlock()
	}
}

func (q *outq) pending() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.queue) > 0
}

// sendQueue sends what is queued now; sending is held.
func (q *outq) sendQueue() {
	q.mu.Lock()
	batch, failed := q.queue, q.err != nil
	q.queue, q.spare, q.bytes = q.spare[:0], nil, 0
	q.mu.Unlock()
	if !failed {
		q.check(q.send(batch))
	}
	q.settle(batch)
	q.mu.Lock()
	q.spare = batch[:0]
	q.mu.Unlock()
}

// send writes the messages of batch; sending is held.
func (q *outq) send(batch []reply) error {
	iov := q.iov[:0]
	for i := range batch {
		r := &batch[i]
		iov = append(iov, r.head[:r.n])
		if len(r.data) > 0 {
			iov = append(iov, r.data)
		}
	}
	q.iov = iov // WriteTo consumes the slice that it is called on
	_, err := iov.WriteTo(q.conn)
	return err
}

// settle gives back what the messages held.
func (q *outq) settle(batch []reply) {
	var requests int
	var bytes int64
	for i := range batch {
		requests += batch[i].requests
		bytes += batch[i].buf.footprint()
		batch[i].buf.put()
	}
	clear(batch)
	q.mem.release(requests, bytes)
}

// check ends the connection after an error of sending: the reader has to
// learn of it, and those who wait for memory.
func (q *outq) check(err error) {
	if err == nil {
		return
	}
	q.mu.Lock()
	q.err = err
	q.mu.Unlock()
	q.mem.close()
	q.conn.Close()
}

// exclusive gives the socket to send, which writes one message piece by
// piece, and to nobody else meanwhile. Its error ends the connection.
func (q *outq) exclusive(send func(io.Writer) error) {
	q.sending.Lock()
	q.mu.Lock()
	failed := q.err != nil
	q.mu.Unlock()
	if !failed {
		q.check(send(q.conn))
	}
	q.sending.Unlock()
	q.flush()
}

// drain sends everything that is queued; nobody adds to it any more.
func (q *outq) drain() {
	q.sending.Lock()
	defer q.sending.Unlock()
	q.sendQueue()
}
