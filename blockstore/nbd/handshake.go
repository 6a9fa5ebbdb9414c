package nbd

import (
	"bytes"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// qemu-nbd's limit (NBD_DEFAULT_HANDSHAKE_MAX_SECS). Scripts that look
	// around by hand for longer have to connect again.
	handshakeTimeout = 10 * time.Second

	// maxOption is far more than the longest sensible option, a
	// SET_META_CONTEXT with a 4096-byte name and many queries.
	maxOption = 64 << 10

	// maxOptions is what nbdkit calls MAX_NR_OPTIONS: no client needs more.
	maxOptions = 4096

	description = "layerfs thin volume"
)

// haggle is a connection in the handshake phase.
type haggle struct {
	*conn
	noZeroes bool
	fixed    bool
	context  string // the export that base:allocation was selected for, or ""
}

// option is one option of the client with its data.
type option struct {
	id   uint32
	data []byte
}

// optionError is an error that is told to the client and ends only the
// option.
type optionError struct {
	reply uint32
	text  string
}

func (e *optionError) Error() string { return e.text }

func refuse(reply uint32, format string, args ...any) error {
	return &optionError{reply, fmt.Sprintf(format, args...)}
}

// handshake negotiates until the transmission phase begins, which no error
// means.
func (c *conn) handshake() error {
	h := &haggle{conn: c}
	c.net.SetDeadline(time.Now().Add(c.srv.patience))
	if c.draining.Load() {
		return errDone // the deadline has replaced that of drain
	}
	if err := h.greet(); err != nil {
		return err
	}
	for range maxOptions {
		opt, err := h.readOption()
		if err != nil {
			return err
		}
		done, err := h.handle(opt)
		if err != nil {
			return err
		}
		if done {
			// Should this undo drain's deadline: transmission sees its mark.
			return c.net.SetDeadline(time.Time{})
		}
	}
	return fmt.Errorf("nbd: more than %d options", maxOptions)
}

// greet exchanges the flags. Unknown ones end the connection (proto.md
// "Client flags"): nobody knows what the client would expect.
func (h *haggle) greet() error {
	hello := be.AppendUint64(nil, magicInit)
	hello = be.AppendUint64(hello, magicOption)
	hello = be.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := h.net.Write(hello); err != nil {
		return err
	}
	b, err := h.in.next(4)
	if err != nil {
		return err
	}
	flags := be.Uint32(b)
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fmt.Errorf("nbd: unknown client flags %#x", flags)
	}
	h.fixed = flags&flagFixedNewstyle != 0
	h.noZeroes = flags&flagNoZeroes != 0
	return nil
}

// readOption receives an option. One that is too long is drained and comes
// back with its data nil, which is how handle knows.
func (h *haggle) readOption() (option, error) {
	b, err := h.in.next(16)
	if err != nil {
		return option{}, err
	}
	magic, opt, n := be.Uint64(b), option{id: be.Uint32(b[8:])}, be.Uint32(b[12:])
	if magic != magicOption {
		return option{}, fmt.Errorf("nbd: option with magic %#016x", magic)
	}
	if !h.fixed && opt.id != optExportName {
		return option{}, fmt.Errorf("nbd: option %d in the handshake before fixed newstyle", opt.id)
	}
	if n > maxOption {
		return opt, h.in.discard(int64(n))
	}
	b, err = h.in.next(int(n))
	if err != nil {
		return option{}, eof(err, 1)
	}
	opt.data = append([]byte{}, b...)
	return opt, nil
}

// handle answers an option; done means that the transmission phase begins.
func (h *haggle) handle(opt option) (done bool, err error) {
	if opt.id == optExportName {
		return true, h.exportName(opt)
	}
	if opt.id == optAbort {
		h.reply(opt, repAck, nil) // the client may be gone already
		return false, errDone
	}
	done, err = h.dispatch(opt)
	if refused, ok := err.(*optionError); ok {
		return false, h.reply(opt, refused.reply, []byte(message(refused.text, maxString)))
	}
	if err != nil {
		return false, err
	}
	return done, h.reply(opt, repAck, nil)
}

func (h *haggle) dispatch(opt option) (done bool, err error) {
	switch opt.id {
	case optList, optInfo, optGo, optStructuredReply, optListMetaContext, optSetMetaContext:
	default:
		return false, refuse(repErrUnsup, "option %d is not supported", opt.id)
	}
	if opt.data == nil {
		return false, refuse(repErrTooBig, "the option has more than %d bytes", maxOption)
	}
	switch opt.id {
	case optInfo:
		return false, h.info(opt)
	case optGo:
		return true, h.info(opt)
	case optListMetaContext, optSetMetaContext:
		return false, h.metaContext(opt)
	}
	if len(opt.data) > 0 {
		return false, refuse(repErrInvalid, "option %d takes no data", opt.id)
	}
	if opt.id == optList {
		return false, h.list(opt)
	}
	h.structured = true
	return false, nil
}

// reply sends an option reply.
func (h *haggle) reply(opt option, kind uint32, data []byte) error {
	b := make([]byte, 0, 20+len(data))
	b = be.AppendUint64(b, magicReply)
	b = be.AppendUint32(b, opt.id)
	b = be.AppendUint32(b, kind)
	b = be.AppendUint32(b, uint32(len(data)))
	_, err := h.net.Write(append(b, data...))
	return err
}

// use makes name the export of the connection. It stays open from INFO or
// SET_META_CONTEXT to the GO that mostly follows.
func (h *haggle) use(name string) error {
	name, err := h.srv.registry.canonical(name)
	if err == nil && h.exp != nil && h.exp.name == name {
		return nil
	}
	if h.exp != nil {
		old := h.exp
		h.exp = nil
		h.srv.report(h.srv.registry.release(old))
	}
	if err == nil {
		h.exp, err = h.srv.registry.acquire(name)
	}
	if err != nil {
		return refuse(openRefusal(err), "%s", err.Error())
	}
	h.size = uint64(max(0, h.exp.Size()))
	return nil
}

// message makes s a string as proto.md "Conventions" defines it: UTF-8
// without NUL, no longer than limit.
func message(s string, limit int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "?")
	if len(s) <= limit {
		return s
	}
	s = s[:limit]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

// fields takes the data of an option apart. After the first field that is
// not there ok is false for good.
type fields struct {
	data []byte
	bad  bool
}

func (f *fields) take(n int) []byte {
	if f.bad || n > len(f.data) {
		f.bad = true
		return make([]byte, 4) // a number of 0
	}
	b := f.data[:n]
	f.data = f.data[n:]
	return b
}

func (f *fields) uint16() uint16 { return be.Uint16(f.take(2)) }
func (f *fields) uint32() uint32 { return be.Uint32(f.take(4)) }

// str takes a string with its length before it.
func (f *fields) str() string {
	n := f.uint32()
	if n > maxString {
		f.bad = true
	}
	b := f.take(int(min(n, maxString)))
	f.bad = f.bad || bytes.IndexByte(b, 0) >= 0
	if f.bad {
		return ""
	}
	return string(b)
}
